#include "common/log_window.h"

#include "common/check.h"

#include <stdlib.h>
#include <string.h>

enum err log_window_init(struct log_window *window)
{
    memset(window, 0, sizeof *window);
    window->memory = (uint8_t *)aligned_alloc(4096, LOG_WINDOW_SIZE);
    return window->memory ? ERR_OK : ERR_NOMEM;
}

void log_window_deinit(struct log_window *window)
{
    free(window->memory);
    window->memory = NULL;
}

void log_window_clear(struct log_window *window) { window->begin = window->end = 0; }

enum err log_window_get(struct log_window *window, const uint8_t **at_out, size_t *size_out, struct file *file, uint64_t offset,
                        size_t want, uint64_t limit)
{
    CHECK(want <= LOG_WINDOW_SIZE - 4096);
    uint64_t target = offset >= limit ? offset : limit - offset < want ? limit : offset + want;
    if (offset < window->begin || target > window->end) {
        uint64_t begin = offset & ~(uint64_t)4095;
        uint64_t end = limit > begin + LOG_WINDOW_SIZE ? begin + LOG_WINDOW_SIZE : (limit + 4095) & ~(uint64_t)4095;
        size_t got = 0;
        window->begin = window->end = begin;
        if (end > begin) {
            enum err err = file_pread(file, &got, window->memory, (size_t)(end - begin), begin);
            if (err)
                return err;
            window->read_count++;
        }
        window->end = begin + got < limit ? begin + got : limit;
        if (window->end < begin)
            window->end = begin;
    }
    *at_out = window->memory + (offset - window->begin);
    *size_out = offset < window->end ? (size_t)(window->end - offset) : 0;
    return ERR_OK;
}
