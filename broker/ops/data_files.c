#include "broker/ops/data_files.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/crc32c.h"

#define CHUNK ((size_t)1 << 20)

static volatile sig_atomic_t is_stopped;

static void on_signal(int number)
{
    (void)number;
    is_stopped = 1;
}

void data_files_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

bool data_files_is_stopped(void) { return is_stopped; }

/* Read the first `limit` bytes, and write them to `to` unless that is NULL. */
static enum err pass(uint64_t *size_out, uint32_t *crc_out, struct file *from, struct file *to, uint64_t limit)
{
    uint8_t *chunk = (uint8_t *)aligned_alloc(FILE_ALIGNMENT_MAX, CHUNK);
    enum err err = chunk ? ERR_OK : ERR_NOMEM;
    *size_out = 0;
    *crc_out = 0;
    while (!err && *size_out < limit) {
        size_t got = 0;
        if (is_stopped) {
            err = ERR_CLOSED;
            break;
        }
        err = file_pread(from, &got, chunk, CHUNK, *size_out);
        if (err || got == 0)
            break;
        size_t taken = limit - *size_out < got ? (size_t)(limit - *size_out) : got;
        if (to)
            err = file_pwrite(to, chunk, taken, *size_out);
        *crc_out = crc32c(*crc_out, chunk, taken);
        *size_out += taken;
        if (got < CHUNK)
            break;
    }
    free(chunk);
    if (!err && limit != UINT64_MAX && *size_out < limit)
        err = ERR_CORRUPT;
    return err;
}

enum err data_files_copy(uint64_t *size_out, uint32_t *crc_out, struct fs *fs, const char *from, const char *to, uint64_t limit,
                         struct errmsg *msg)
{
    struct file *source = NULL, *copy = NULL;
    enum err err = fs_open(fs, &source, from, FILE_READ | FILE_DIRECT);
    if (err)
        return err_set(msg, err, "%s: %s", from, err_text(err));
    err = fs_open(fs, &copy, to, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE);
    if (!err)
        err = pass(size_out, crc_out, source, copy, limit);
    if (err == ERR_CORRUPT)
        err_set(msg, err, "%s: has %" PRIu64 " bytes, %" PRIu64 " were expected", from, *size_out, limit);
    else if (err)
        err_set(msg, err, "copy of %s to %s: %s", from, to, err == ERR_CLOSED ? "stopped by a signal" : err_text(err));
    if (!err && (err = file_sync(copy)) != ERR_OK)
        err_set(msg, err, "%s: sync: %s", to, err_text(err));
    file_close(source);
    file_close(copy);
    return err;
}

enum err data_files_checksum(uint64_t *size_out, uint32_t *crc_out, struct fs *fs, const char *path, struct errmsg *msg)
{
    struct file *file = NULL;
    enum err err = fs_open(fs, &file, path, FILE_READ | FILE_DIRECT);
    if (!err)
        err = pass(size_out, crc_out, file, NULL, UINT64_MAX);
    file_close(file);
    return err ? err_set(msg, err, "%s: %s", path, err == ERR_CLOSED ? "stopped by a signal" : err_text(err)) : ERR_OK;
}

enum err data_files_write(struct fs *fs, const char *dir, const char *name, const void *data, size_t size, struct errmsg *msg)
{
    char path[FILE_PATH_MAX], aside[FILE_PATH_MAX];
    struct file *file = NULL;
    enum err err = file_path(path, dir, name);
    if (!err && snprintf(aside, sizeof aside, "%s.new", path) >= (int)sizeof aside)
        err = ERR_TOOLARGE;
    if (!err)
        err = fs_open(fs, &file, aside, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
    if (!err)
        err = file_pwrite(file, data, size, 0);
    if (!err)
        err = file_sync(file);
    file_close(file);
    if (!err)
        err = fs_rename(fs, aside, path);
    if (!err)
        err = fs_sync_dir(fs, dir);
    return err ? err_set(msg, err, "%s/%s: %s", dir, name, err_text(err)) : ERR_OK;
}

struct names {
    char **names;
    size_t count, capacity;
    bool failed;
};

static void names_add(void *context, const char *name)
{
    struct names *list = (struct names *)context;
    if (list->failed)
        return;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        char **names = (char **)realloc(list->names, capacity * sizeof *names);
        list->failed = !names;
        if (!names)
            return;
        list->names = names;
        list->capacity = capacity;
    }
    list->names[list->count] = strdup(name);
    list->failed = !list->names[list->count];
    list->count += !list->failed;
}

static int names_compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The pointers and behind them the texts, in one block. */
static char **names_pack(const struct names *list)
{
    size_t size = (list->count + 1) * sizeof(char *);
    for (size_t i = 0; i < list->count; i++)
        size += strlen(list->names[i]) + 1;
    char **packed = (char **)malloc(size);
    if (!packed)
        return NULL;
    char *at = (char *)(packed + list->count + 1);
    for (size_t i = 0; i < list->count; i++) {
        packed[i] = at;
        at = stpcpy(at, list->names[i]) + 1;
    }
    packed[list->count] = NULL;
    return packed;
}

enum err data_files_list(char ***names_out, size_t *count_out, struct fs *fs, const char *dir)
{
    struct names list = {0};
    *names_out = NULL;
    *count_out = 0;
    enum err err = fs_list(fs, dir, &list, names_add);
    if (!err && list.failed)
        err = ERR_NOMEM;
    if (!err && list.count > 0)
        qsort(list.names, list.count, sizeof *list.names, names_compare);
    if (!err && !(*names_out = names_pack(&list)))
        err = ERR_NOMEM;
    if (!err)
        *count_out = list.count;
    for (size_t i = 0; i < list.count; i++)
        free(list.names[i]);
    free(list.names);
    return err;
}

enum err data_files_is_free(struct fs *fs, const char *dir)
{
    char **names;
    size_t count;
    enum err err = data_files_list(&names, &count, fs, dir);
    if (err == ERR_NOTFOUND)
        return ERR_OK;
    if (!err && !(count == 0 || (count == 1 && strcmp(names[0], "lost+found") == 0)))
        err = ERR_EXISTS;
    free(names);
    return err;
}

/* Where `path` leads, with what is not there yet of it. */
static enum err resolve(char at_out[FILE_PATH_MAX], const char *path)
{
    char there[FILE_PATH_MAX];
    char *real = NULL;
    if (snprintf(there, sizeof there, path[0] == '/' ? "%s" : "./%s", path) >= (int)sizeof there)
        return ERR_TOOLARGE;
    size_t size = strlen(there);
    while (size > 0 && !(real = realpath(there, NULL))) { /* what is not there, or may not be looked at, from its end */
        while (size > 0 && there[size - 1] == '/')
            size--;
        while (size > 0 && there[size - 1] != '/')
            size--;
        there[size] = '\0';
    }
    int written = snprintf(at_out, FILE_PATH_MAX, "%s", real ? real : "/");
    free(real);
    size_t prefix = path[0] == '/' ? 0 : 2;
    const char *rest = path + (size > prefix ? size - prefix : 0);
    for (size_t end; *rest && written < FILE_PATH_MAX; rest += end) { /* it will be made, without links */
        rest += strspn(rest, "/");
        end = strcspn(rest, "/");
        if (end == 0 || (end == 1 && rest[0] == '.'))
            continue;
        if (end == 2 && rest[0] == '.' && rest[1] == '.') {
            char *slash = strrchr(at_out, '/');
            slash[slash == at_out] = '\0';
            written = (int)strlen(at_out);
        } else {
            written += snprintf(at_out + written, (size_t)(FILE_PATH_MAX - written), "/%.*s", (int)end, rest);
        }
    }
    return written < FILE_PATH_MAX ? ERR_OK : ERR_TOOLARGE;
}

enum err data_files_is_inside(bool *is_inside_out, const char *path, const char *dir)
{
    struct stat wanted, found;
    char at[FILE_PATH_MAX];
    *is_inside_out = false;
    if (stat(dir, &wanted) < 0)
        return ERR_OK;
    enum err err = resolve(at, path);
    while (!err && !*is_inside_out) {
        *is_inside_out = stat(at, &found) == 0 && found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino;
        char *slash = strrchr(at, '/');
        if (slash[1] == '\0')
            break;
        slash[slash == at] = '\0';
    }
    return err;
}

bool data_files_exist(const char *dir, const char *name)
{
    char path[FILE_PATH_MAX];
    return file_path(path, dir, name) == ERR_OK && access(path, F_OK) == 0;
}
