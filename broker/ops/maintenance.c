#include "broker/ops/maintenance.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/ops/backup.h"
#include "broker/ops/repair.h"
#include "broker/ops/restore.h"

bool maintenance_wants_dir(const char *command) { return strcmp(command, "backup") == 0 || strcmp(command, "restore") == 0; }

bool maintenance_is_command(const char *word) { return maintenance_wants_dir(word) || strcmp(word, "repair") == 0; }

static int finish(const struct maintenance_options *options, enum err err, const struct errmsg *msg)
{
    (void)fflush(stdout);
    if (err != ERR_OK)
        (void)fprintf(stderr, "tidegate-broker %s: %s\n", options->command, msg->text[0] ? msg->text : err_text(err));
    return err == ERR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Without slashes at the end, as the broker itself names it. */
static char *clean_path(const char *path)
{
    char *clean = strdup(path);
    for (size_t size = clean ? strlen(clean) : 0; size > 1 && clean[size - 1] == '/'; size--)
        clean[size - 1] = 0;
    return clean;
}

static int run(const struct maintenance_options *options)
{
    struct errmsg msg = {{0}};
    if (strcmp(options->command, "backup") == 0) {
        struct backup_options backup = {.data_dir = options->data_dir, .dir = options->dir, .out = stdout};
        return finish(options, backup_run(&backup, &msg), &msg);
    }
    if (strcmp(options->command, "restore") == 0) {
        struct restore_options restore = {.data_dir = options->data_dir, .dir = options->dir, .out = stdout};
        return finish(options, restore_run(&restore, &msg), &msg);
    }
    struct repair_options repair = {
        .data_dir = options->data_dir, .checkpoint_bytes_max = options->checkpoint_bytes_max, .yes = options->yes, .out = stdout};
    unsigned found;
    int status = finish(options, repair_run(&repair, &found, &msg), &msg);
    return status == EXIT_SUCCESS && found > 0 && !options->yes ? EXIT_FAILURE : status;
}

int maintenance_run(const struct maintenance_options *options)
{
    struct maintenance_options cleaned = *options;
    char *data_dir = clean_path(options->data_dir), *dir = options->dir ? clean_path(options->dir) : NULL;
    int status = EXIT_FAILURE;
    cleaned.data_dir = data_dir;
    cleaned.dir = dir;
    if (data_dir && (dir || !options->dir))
        status = run(&cleaned);
    else
        (void)fprintf(stderr, "tidegate-broker %s: %s\n", options->command, err_text(ERR_NOMEM));
    free(data_dir);
    free(dir);
    return status;
}
