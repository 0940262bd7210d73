#include "common/log_segment.h"

#include "common/bytes.h"
#include "common/crc32c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define LOG_SEGMENT_MAGIC 0x534c4754u /* "TGLS" */
#define LOG_SEGMENT_REPAIR 1u         /* flag */

void log_segment_header_encode(uint8_t *at, const struct log_segment_header *header)
{
    memset(at, 0, LOG_SEGMENT_HEADER_SIZE);
    store_le32(at, LOG_SEGMENT_MAGIC);
    store_le16(at + 8, LOG_SEGMENT_VERSION);
    store_le16(at + 10, header->is_repair ? LOG_SEGMENT_REPAIR : 0);
    store_le32(at + 12, header->epoch);
    store_le64(at + 16, header->broker_id);
    store_le64(at + 24, header->generation);
    store_le64(at + 32, header->start);
    store_le64(at + 40, header->first_sequence);
    store_le64(at + 48, header->predecessor.generation);
    store_le64(at + 56, header->predecessor.offset);
    store_le64(at + 64, header->size);
    store_le64(at + 72, (uint64_t)header->created_ns);
    store_le32(at + 80, header->alignment);
    store_le32(at + 4, crc32c(0, at + 8, LOG_SEGMENT_HEADER_SIZE - 8));
}

enum err log_segment_header_decode(struct log_segment_header *header_out, const uint8_t *at, size_t size)
{
    if (size < LOG_SEGMENT_HEADER_SIZE || load_le32(at) != LOG_SEGMENT_MAGIC ||
        load_le32(at + 4) != crc32c(0, at + 8, LOG_SEGMENT_HEADER_SIZE - 8))
        return ERR_CORRUPT;
    if (load_le16(at + 8) != LOG_SEGMENT_VERSION || load_le16(at + 10) & ~LOG_SEGMENT_REPAIR)
        return ERR_VERSION;
    header_out->is_repair = load_le16(at + 10) & LOG_SEGMENT_REPAIR;
    header_out->epoch = load_le32(at + 12);
    header_out->broker_id = load_le64(at + 16);
    header_out->generation = load_le64(at + 24);
    header_out->start = load_le64(at + 32);
    header_out->first_sequence = load_le64(at + 40);
    header_out->predecessor.generation = load_le64(at + 48);
    header_out->predecessor.offset = load_le64(at + 56);
    header_out->size = load_le64(at + 64);
    header_out->created_ns = (int64_t)load_le64(at + 72);
    header_out->alignment = load_le32(at + 80);
    uint32_t alignment = header_out->alignment;
    if (alignment < 512 || alignment > 4096 || (alignment & (alignment - 1)) || header_out->generation == 0 || header_out->epoch == 0 ||
        header_out->first_sequence == 0)
        return ERR_CORRUPT;
    uint64_t before = header_out->predecessor.generation;
    if (before == 0)
        return ERR_OK;
    bool is_possible = header_out->is_repair ? before < header_out->generation : before == header_out->generation - 1;
    return is_possible && header_out->predecessor.offset >= LOG_SEGMENT_HEADER_SIZE ? ERR_OK : ERR_CORRUPT;
}

void log_segment_name(char *name_out, uint64_t generation) { snprintf(name_out, LOG_SEGMENT_NAME_SIZE, "%016" PRIx64 ".seg", generation); }

uint64_t log_segment_name_parse(const char *name)
{
    uint64_t generation = 0;
    if (strlen(name) != 20 || strcmp(name + 16, ".seg") != 0)
        return 0;
    for (int i = 0; i < 16; i++) {
        char c = name[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return 0;
        generation = generation << 4 | (uint64_t)digit;
    }
    return generation;
}

bool log_segment_name_is_spare(const char *name)
{
    size_t size = strlen(name);
    return size > 10 && strncmp(name, "spare-", 6) == 0 && strcmp(name + size - 4, ".seg") == 0;
}

struct segment_list {
    uint64_t *generations;
    size_t count;
    size_t capacity;
    size_t spare_count;
    bool failed;
};

static void segment_list_add(void *context, const char *name)
{
    struct segment_list *list = (struct segment_list *)context;
    uint64_t generation = log_segment_name_parse(name);
    if (log_segment_name_is_spare(name))
        list->spare_count++;
    if (generation == 0 || list->failed)
        return;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        uint64_t *generations = (uint64_t *)realloc(list->generations, capacity * sizeof *generations);
        if (!generations) {
            list->failed = true;
            return;
        }
        list->generations = generations;
        list->capacity = capacity;
    }
    list->generations[list->count++] = generation;
}

static int segment_list_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

enum err log_segment_list(struct fs *fs, const char *dir, uint64_t **generations_out, size_t *count_out, size_t *spare_count_out)
{
    struct segment_list list = {0};
    enum err err = fs_list(fs, dir, &list, segment_list_add);
    if (!err && list.failed)
        err = ERR_NOMEM;
    if (err) {
        free(list.generations);
        return err;
    }
    if (list.count)
        qsort(list.generations, list.count, sizeof *list.generations, segment_list_compare);
    *generations_out = list.generations;
    *count_out = list.count;
    if (spare_count_out)
        *spare_count_out = list.spare_count;
    return ERR_OK;
}

enum err log_segment_open(struct file **file_out, struct log_segment_header *header_out, struct fs *fs, const char *dir,
                          uint64_t generation)
{
    char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    struct file *file = NULL;
    *file_out = NULL;
    log_segment_name(name, generation);
    enum err err = file_path(path, dir, name);
    if (err)
        return err;
    uint8_t *header = (uint8_t *)aligned_alloc(4096, LOG_SEGMENT_HEADER_SIZE);
    if (!header)
        return ERR_NOMEM;
    size_t got = 0;
    err = fs_open(fs, &file, path, FILE_READ | FILE_DIRECT);
    if (!err)
        err = file_pread(file, &got, header, LOG_SEGMENT_HEADER_SIZE, 0);
    if (!err)
        err = log_segment_header_decode(header_out, header, got);
    if (!err && header_out->generation != generation)
        err = ERR_CORRUPT;
    free(header);
    if (err)
        file_close(file);
    else
        *file_out = file;
    return err;
}

enum err log_segment_find_oldest(struct log_segment_header *header_out, struct fs *fs, const char *dir)
{
    uint64_t *generations = NULL;
    size_t count = 0;
    bool is_found = false;
    enum err err = log_segment_list(fs, dir, &generations, &count, NULL);
    for (size_t i = 0; !err && !is_found && i < count; i++) {
        struct file *file = NULL;
        err = log_segment_open(&file, header_out, fs, dir, generations[i]);
        is_found = err == ERR_OK;
        if (is_found)
            file_close(file);
        else if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
            err = ERR_OK;
    }
    free(generations);
    return err || is_found ? err : ERR_NOTFOUND;
}

enum err log_segment_find_next(struct log_segment_header *header_out, struct fs *fs, const char *dir, uint64_t generation)
{
    struct file *file = NULL;
    enum err err = log_segment_open(&file, header_out, fs, dir, generation + 1);
    if (!err)
        file_close(file);
    if (err != ERR_NOTFOUND)
        return err;
    uint64_t *generations = NULL;
    size_t count = 0, at = 0;
    err = log_segment_list(fs, dir, &generations, &count, NULL);
    while (!err && at < count && generations[at] <= generation)
        at++;
    if (!err)
        err = at < count ? log_segment_open(&file, header_out, fs, dir, generations[at]) : ERR_NOTFOUND;
    free(generations);
    if (err)
        return err;
    file_close(file);
    return header_out->is_repair ? ERR_OK : ERR_NOTFOUND;
}

bool log_segment_holds(const struct log_segment_header *segment, const struct log_block_header *block, uint64_t offset)
{
    struct log_place here = {segment->generation, offset};
    return block->broker_id == segment->broker_id && block->generation == segment->generation && block->offset == offset &&
           block->start == segment->start && block->epoch == segment->epoch && block->size % segment->alignment == 0 &&
           log_place_compare(block->durable_before.place, here) <= 0;
}
