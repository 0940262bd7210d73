#include "broker/ops/repair_finding.h"

#include <string.h>

#include "broker/ops/data_files.h"
#include "common/clock.h"
#include "common/data_dir.h"

#define ASIDE_TRIES 1000 /* names of one second */

bool repair_find(struct repair *repair, const char *wrong, const char *remedy, const char *loss)
{
    FILE *out = repair->options->out;
    repair->found++;
    fprintf(out, "%u. %s\n   %s: %s\n   lost: %s\n", repair->found, wrong, repair->options->yes ? "done" : "with --yes", remedy, loss);
    (void)fflush(out);
    return repair->options->yes;
}

/* A name that no earlier repair has, which may have been interrupted within this very second. */
static enum err name_aside(struct repair *repair)
{
    char now[CLOCK_TEXT_SIZE];
    clock_format(now, clock_wall(), 0);
    for (int i = 1; i <= ASIDE_TRIES; i++) {
        int size = snprintf(repair->aside_name, sizeof repair->aside_name, "damaged-%.10s-%.2s%.2s%.2s", now, now + 11, now + 14, now + 17);
        if (i > 1)
            snprintf(repair->aside_name + size, sizeof repair->aside_name - (size_t)size, "-%d", i);
        if (!data_files_exist(repair->options->data_dir, repair->aside_name))
            return file_path(repair->aside, repair->options->data_dir, repair->aside_name);
    }
    return err_set(repair->msg, ERR_EXISTS, "%s/%s: exists already", repair->options->data_dir, repair->aside_name);
}

enum err repair_make_aside(struct repair *repair, const char *part)
{
    char path[FILE_PATH_MAX];
    enum err err = repair->aside[0] ? ERR_OK : name_aside(repair);
    if (!err)
        err = data_dir_make(repair->aside, repair->msg);
    if (!err && part)
        err = file_path(path, repair->aside, part);
    return err || !part ? err : data_dir_make(path, repair->msg);
}

/* "log/x" -> its directory's part "log"; NULL for a name without one. */
static const char *first_part(char part_out[64], const char *name)
{
    const char *slash = strchr(name, '/');
    if (!slash || (size_t)(slash - name) >= 64)
        return NULL;
    memcpy(part_out, name, (size_t)(slash - name));
    part_out[slash - name] = 0;
    return part_out;
}

enum err repair_move_aside(struct repair *repair, const char *name)
{
    char part[64], from[FILE_PATH_MAX], to[FILE_PATH_MAX], to_dir[FILE_PATH_MAX], from_dir[FILE_PATH_MAX];
    const char *directory = first_part(part, name);
    enum err err = repair_make_aside(repair, directory);
    if (!err)
        err = file_path(from, repair->options->data_dir, name);
    if (!err)
        err = file_path(to, repair->aside, name);
    if (!err)
        err = fs_rename(repair->fs, from, to);
    if (!err)
        err = file_path(to_dir, repair->aside, directory ? directory : ".");
    if (!err)
        err = fs_sync_dir(repair->fs, to_dir);
    if (!err)
        err = file_path(from_dir, repair->options->data_dir, directory ? directory : ".");
    if (!err)
        err = fs_sync_dir(repair->fs, from_dir);
    return err ? err_set(repair->msg, err, "%s/%s: cannot be moved aside: %s", repair->options->data_dir, name, err_text(err)) : ERR_OK;
}
