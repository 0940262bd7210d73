#include "broker/ops/backup_list.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/log_segment.h"

#define HEAD "tidegate-broker backup "
#define VERSION 1
#define LINE_MAX_SIZE 256

void backup_list_deinit(struct backup_list *list)
{
    free(list->files);
    *list = (struct backup_list){0};
}

bool backup_list_is_name(const char *name)
{
    if (strlen(name) >= BACKUP_FILE_NAME_MAX)
        return false;
    if (strcmp(name, "format") == 0 || strcmp(name, "checkpoint/data.mdb") == 0)
        return true;
    if (strncmp(name, "log/", 4) != 0)
        return false;
    name += 4;
    if (strcmp(name, "identity") == 0 || strcmp(name, "state") == 0)
        return true;
    if (strncmp(name, LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) != 0)
        return log_segment_name_parse(name) != 0;
    name += strlen(LOG_CURSOR_PREFIX);
    size_t size = strlen(name);
    return size > 0 && size < LOG_CURSOR_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == size;
}

enum err backup_list_add(struct backup_list *list, const char *name, uint64_t size, uint32_t crc)
{
    if (!backup_list_is_name(name) || list->file_count == BACKUP_LIST_FILES_MAX)
        return ERR_INVALID;
    if (list->file_count == list->file_capacity) {
        size_t capacity = list->file_capacity ? 2 * list->file_capacity : 64;
        struct backup_file *files = (struct backup_file *)realloc(list->files, capacity * sizeof *files);
        if (!files)
            return ERR_NOMEM;
        list->files = files;
        list->file_capacity = capacity;
    }
    struct backup_file *file = &list->files[list->file_count++];
    *file = (struct backup_file){.size = size, .crc = crc};
    memcpy(file->name, name, strlen(name) + 1);
    return ERR_OK;
}

uint64_t backup_list_bytes(const struct backup_list *list)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < list->file_count; i++)
        bytes += list->files[i].size;
    return bytes;
}

#define PLACE "%016" PRIx64 ".seg:%" PRIu64
#define PLACE_IN "%16" SCNx64 ".seg:%20" SCNu64

enum err backup_list_format(struct buf *out, const struct backup_list *list)
{
    const struct log_cursor_value *checkpoint = &list->checkpoint;
    size_t begin = out->size;
    buf_printf(out, HEAD "%d\nmade %" PRId64 "\nformat %" PRIu32 "\nbroker %016" PRIx64 " epoch %" PRIu32 "\n", VERSION, list->made_ns,
               list->format, list->broker_id, list->epoch);
    if (list->has_checkpoint)
        buf_printf(out, "checkpoint of %016" PRIx64 " at %" PRIu32 ":%" PRIu64 " place " PLACE " reopen " PLACE "\n", checkpoint->broker_id,
                   checkpoint->position.epoch, checkpoint->position.sequence, checkpoint->place.generation, checkpoint->place.offset,
                   checkpoint->reopen.generation, checkpoint->reopen.offset);
    else
        buf_put_string(out, "checkpoint none\n");
    buf_printf(out, "end %" PRIu32 ":%" PRIu64 " place " PLACE "\n", list->end.position.epoch, list->end.position.sequence,
               list->end.place.generation, list->end.place.offset);
    for (size_t i = 0; i < list->file_count; i++)
        buf_printf(out, "file %08" PRIx32 " %" PRIu64 " %s\n", list->files[i].crc, list->files[i].size, list->files[i].name);
    if (out->err)
        return out->err;
    buf_printf(out, "checksum %08" PRIx32 "\n", crc32c(0, out->data + begin, out->size - begin));
    return out->err;
}

/* The next line without its end, as a string. Returns false when there is none, or none that a list has. */
static bool parse_line(char line_out[LINE_MAX_SIZE], struct span *text)
{
    const uint8_t *end = text->size ? (const uint8_t *)memchr(text->data, '\n', text->size) : NULL;
    size_t size = end ? (size_t)(end - text->data) : 0;
    if (!end || size >= LINE_MAX_SIZE)
        return false;
    for (size_t i = 0; i < size; i++) {
        if (text->data[i] < ' ' || text->data[i] > '~')
            return false;
    }
    memcpy(line_out, text->data, size);
    line_out[size] = 0;
    *text = span_of(end + 1, text->size - size - 1);
    return true;
}

/* sscanf that reads the whole line: `at` is what %n said. */
static bool parse_whole(const char *line, int found, int wanted, int at) { return found == wanted && at > 0 && line[at] == 0; }

static bool parse_checkpoint(struct backup_list *list, const char *line)
{
    struct log_cursor_value *value = &list->checkpoint;
    int at = 0;
    if (strcmp(line, "checkpoint none") == 0)
        return true;
    list->has_checkpoint = true;
    int found = sscanf(line, "checkpoint of %16" SCNx64 " at %10" SCNu32 ":%20" SCNu64 " place " PLACE_IN " reopen " PLACE_IN "%n",
                       &value->broker_id, &value->position.epoch, &value->position.sequence, &value->place.generation, &value->place.offset,
                       &value->reopen.generation, &value->reopen.offset, &at);
    return parse_whole(line, found, 7, at);
}

/* The lines between the first and those of files, one after the other. */
static bool parse_fact(struct backup_list *list, const char *line, int index)
{
    struct log_end *end = &list->end;
    int at = 0, found;
    switch (index) {
    case 0:
        found = sscanf(line, "made %20" SCNd64 "%n", &list->made_ns, &at);
        return parse_whole(line, found, 1, at);
    case 1:
        found = sscanf(line, "format %10" SCNu32 "%n", &list->format, &at);
        return parse_whole(line, found, 1, at);
    case 2:
        found = sscanf(line, "broker %16" SCNx64 " epoch %10" SCNu32 "%n", &list->broker_id, &list->epoch, &at);
        return parse_whole(line, found, 2, at);
    case 3:
        return parse_checkpoint(list, line);
    default:
        found = sscanf(line, "end %10" SCNu32 ":%20" SCNu64 " place " PLACE_IN "%n", &end->position.epoch, &end->position.sequence,
                       &end->place.generation, &end->place.offset, &at);
        return parse_whole(line, found, 4, at);
    }
}

static enum err parse_file(struct backup_list *list, const char *line)
{
    uint32_t crc;
    uint64_t size;
    int at = 0;
    if (sscanf(line, "file %8" SCNx32 " %20" SCNu64 " %n", &crc, &size, &at) != 2 || at == 0)
        return ERR_CORRUPT;
    enum err err = backup_list_add(list, line + at, size, crc);
    return err == ERR_INVALID ? ERR_CORRUPT : err;
}

enum err backup_list_parse(struct backup_list *list_out, struct span text, struct errmsg *msg)
{
    char line[LINE_MAX_SIZE];
    struct span rest = text;
    *list_out = (struct backup_list){0};
    if (!parse_line(line, &rest) || strncmp(line, HEAD, strlen(HEAD)) != 0)
        return err_set(msg, ERR_CORRUPT, "line 1: no list of a backup");
    if (atoi(line + strlen(HEAD)) != VERSION)
        return err_set(msg, ERR_VERSION, "line 1: \"%s\": %s", line, err_text(ERR_VERSION));
    for (int number = 2;; number++) {
        size_t before = text.size - rest.size;
        if (!parse_line(line, &rest))
            return err_set(msg, ERR_CORRUPT, "line %d: is none of a list, or the list ends before its checksum", number);
        if (number > 6 && strncmp(line, "checksum ", 9) == 0) {
            char expected[LINE_MAX_SIZE];
            snprintf(expected, sizeof expected, "checksum %08" PRIx32, crc32c(0, text.data, before));
            if (strcmp(line, expected) != 0)
                return err_set(msg, ERR_CORRUPT, "line %d: the list's checksum does not hold", number);
            return rest.size == 0 ? ERR_OK : err_set(msg, ERR_CORRUPT, "line %d: nothing may follow", number + 1);
        }
        enum err err = number > 6 ? parse_file(list_out, line) : parse_fact(list_out, line, number - 2) ? ERR_OK : ERR_CORRUPT;
        if (err)
            return err_set(msg, err, "line %d: \"%.100s\": %s", number, line, err_text(err));
    }
}
