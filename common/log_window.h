/* A window onto a segment file: the bytes around an offset, read directly in large pieces. Shared by recovery and reader.
 *
 * Owner: one reader or recovery. Nothing at or past the `limit` given with a request is ever handed out, even when the same read brought it
 * along; it is read again when the limit has moved. */
#ifndef TIDEGATE_COMMON_LOG_WINDOW_H
#define TIDEGATE_COMMON_LOG_WINDOW_H

#include "common/file.h"

#define LOG_WINDOW_SIZE ((size_t)1 << 20)

struct log_window {
    uint8_t *memory;     /* LOG_WINDOW_SIZE bytes, aligned */
    uint64_t begin;      /* offset of memory[0] */
    uint64_t end;        /* valid up to here, exclusive; begin == end: empty */
    uint64_t read_count; /* reads of the disk */
};

must_check enum err log_window_init(struct log_window *window);
void log_window_deinit(struct log_window *window);

/* Forget what was read: another file, or its contents changed. */
void log_window_clear(struct log_window *window);

/* The bytes from `offset` (a multiple of 512) on: at least `want`, or fewer where `limit` or the file ends.
 * at_out  borrowed until the next call. */
must_check enum err log_window_get(struct log_window *window, const uint8_t **at_out, size_t *size_out, struct file *file, uint64_t offset,
                                   size_t want, uint64_t limit);

#endif
