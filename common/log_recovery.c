/* Recovery in four steps: list what is there and who claims what (state, cursors, checkpoint); read the segments in order and stop where
 * the log does not continue; look behind that place for proof that it once did; sync what was accepted.
 *
 * A segment that has a successor with a valid header ends where that header says, not where its blocks seem to end: a torn tail of an
 * earlier start stays behind that place and is never looked at again. Only the last segment's end is found by looking. */
#include "common/log_recovery.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/log_cursor.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "common/log_version.h"
#include "common/log_window.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct scan {
    struct log_recovery *recovery;
    struct fs *fs;
    const char *dir;
    struct errmsg *msg;
    struct log_window window;
    uint64_t *generations;
    size_t generation_count;
    uint64_t needed;                      /* oldest generation that anybody claims; UINT64_MAX: nobody */
    struct log_place sync_from;           /* what stands from here on may not be durable yet */
    uint64_t shard_blocks[LOG_SHARD_MAX]; /* last seen in this epoch; 0: none */
    bool group_open[LOG_SHARD_MAX];
    uint64_t start;      /* of the segment scanned last */
    uint64_t generation; /* of the segment opened last, for messages; 0: none */
    enum err cursor_err;
};

/* Somebody says that the log was durable up to `place`. Keep the farthest. */
static void scan_claim(struct scan *scan, struct log_place place, const char *by)
{
    if (log_place_compare(place, scan->recovery->proof) <= 0)
        return;
    scan->recovery->proof = place;
    snprintf(scan->recovery->proof_by, sizeof scan->recovery->proof_by, "%s", by);
}

static void scan_need(struct scan *scan, uint64_t generation)
{
    if (generation && generation < scan->needed)
        scan->needed = generation;
}

static void scan_cursor(void *context, const char *name)
{
    struct scan *scan = (struct scan *)context;
    struct log_cursor_value value;
    if (strncmp(name, LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) != 0 || scan->cursor_err)
        return;
    enum err err = log_cursor_read(&value, scan->fs, scan->dir, name + strlen(LOG_CURSOR_PREFIX));
    if (err == ERR_NOTFOUND) /* made, but its first value did not reach the disk: it never held anything */
        return;
    if (err == ERR_CORRUPT || err == ERR_VERSION) { /* it may need anything; its owner and log_writer_prepare() report it */
        scan_need(scan, 1);
        return;
    }
    if (err) {
        scan->cursor_err = err_set(scan->msg, err, "%s/%s: %s", scan->dir, name, err_text(err));
        return;
    }
    scan_need(scan, value.reopen.generation);
    scan_claim(scan, value.place, name);
}

static enum err scan_claims(struct scan *scan, const struct log_recovery_options *options)
{
    struct log_state state;
    struct log_state_value value;
    enum err err = log_state_open(&state, scan->fs, scan->dir, false);
    if (!err) {
        err = log_state_read(&state, &value);
        log_state_close(&state);
        if (!err) {
            scan_need(scan, value.end.place.generation);
            scan_claim(scan, value.end.place, "state");
        }
    }
    if (err == ERR_VERSION) {
        char path[FILE_PATH_MAX];
        err = file_path(path, scan->dir, "state");
        return err ? err : log_version_refuse(scan->fs, path, LOG_SLOT_STRIDE, LOG_SLOT_VERSION, scan->msg);
    }
    if (err && err != ERR_NOTFOUND && err != ERR_CORRUPT) /* a state that cannot be read proves nothing; the next start writes it anew */
        return err_set(scan->msg, err, "%s/state: %s", scan->dir, err_text(err));
    err = fs_list(scan->fs, scan->dir, scan, scan_cursor);
    if (err)
        return err_set(scan->msg, err, "%s: %s", scan->dir, err_text(err));
    if (scan->cursor_err)
        return scan->cursor_err;
    if (options->checkpoint.generation) {
        scan_need(scan, options->checkpoint.generation);
        scan_claim(scan, options->checkpoint_end.generation ? options->checkpoint_end : options->checkpoint, "checkpoint");
    }
    if (options->from.generation)
        scan->needed = options->from.generation;
    return ERR_OK;
}

static void scan_void_groups(struct scan *scan)
{
    for (size_t i = 0; i < LOG_SHARD_MAX; i++)
        scan->recovery->void_group_count += scan->group_open[i];
    memset(scan->group_open, 0, sizeof scan->group_open);
}

/* Does the block continue the log here? Then count it in. */
static bool scan_accept(struct scan *scan, const struct log_segment_header *segment, const struct log_block_view *view)
{
    struct log_recovery *recovery = scan->recovery;
    const struct log_block_header *header = &view->header;
    if (!log_segment_holds(segment, header, recovery->end.place.offset) || header->sequence != recovery->end.position.sequence)
        return false;
    uint64_t *shard_block = &scan->shard_blocks[header->shard];
    if (*shard_block && header->shard_block != *shard_block + 1)
        return false;
    *shard_block = header->shard_block;
    if (header->flags & LOG_BLOCK_GROUP_FIRST) {
        recovery->void_group_count += scan->group_open[header->shard];
        scan->group_open[header->shard] = true;
    } else if (header->flags & LOG_BLOCK_GROUP_LAST) {
        scan->group_open[header->shard] = false;
    }
    recovery->end.place.offset += header->size;
    recovery->end.position.sequence += header->record_count;
    recovery->block_count++;
    recovery->record_count += header->record_count;
    recovery->byte_count += header->size;
    scan->sync_from = header->durable_before.place;
    return true;
}

/* Accept blocks of an open segment up to `limit` as long as they continue. */
static enum err scan_blocks(struct scan *scan, struct file *file, const struct log_segment_header *segment, uint64_t limit)
{
    log_window_clear(&scan->window);
    while (scan->recovery->end.place.offset < limit) {
        const uint8_t *at;
        size_t size;
        struct log_block_view view;
        enum err err = log_window_get(&scan->window, &at, &size, file, scan->recovery->end.place.offset, LOG_BLOCK_SIZE_MAX, limit);
        if (err)
            return err;
        err = log_block_view_parse(&view, at, size);
        if (err == ERR_VERSION)
            return err;
        if (err || !scan_accept(scan, segment, &view))
            break;
    }
    return ERR_OK;
}

/* Headers of blocks behind the end, each at a multiple of 512: they measure the torn tail, and may prove that it is none. A header lies
 * within one sector, so it is whole or not there at all; its body does not matter. `segment` NULL: the file has no valid segment header. */
static enum err scan_behind(struct scan *scan, struct file *file, const struct log_segment_header *segment, uint64_t generation,
                            uint64_t from)
{
    struct log_recovery *recovery = scan->recovery;
    uint64_t file_end;
    enum err err = file_size(file, &file_end);
    log_window_clear(&scan->window);
    for (uint64_t offset = from; !err && offset + LOG_BLOCK_HEADER_SIZE <= file_end; offset += FILE_ALIGNMENT_MIN) {
        const uint8_t *at;
        size_t size;
        struct log_block_header header;
        err = log_window_get(&scan->window, &at, &size, file, offset, LOG_BLOCK_HEADER_SIZE, file_end);
        if (err || log_block_header_decode(&header, at, size) != ERR_OK)
            continue;
        if (segment ? !log_segment_holds(segment, &header, offset) : header.generation != generation || header.offset != offset)
            continue;
        if (segment && generation == recovery->end.place.generation && offset + header.size > recovery->end.place.offset)
            recovery->torn_bytes = offset + header.size - recovery->end.place.offset;
        char by[64];
        snprintf(by, sizeof by, "block %016" PRIx64 ".seg:%" PRIu64, generation, offset);
        scan_claim(scan, header.durable_before.place, by);
    }
    return err;
}

/* Open generations[index]; ERR_CORRUPT when its header is not valid, with the file open all the same for a look at its blocks. */
static enum err scan_open(struct scan *scan, struct file **file_out, struct log_segment_header *header_out, size_t index)
{
    char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    scan->generation = scan->generations[index];
    enum err err = log_segment_open(file_out, header_out, scan->fs, scan->dir, scan->generations[index]);
    if (err != ERR_CORRUPT)
        return err;
    log_segment_name(name, scan->generations[index]);
    err = file_path(path, scan->dir, name);
    if (!err)
        err = fs_open(scan->fs, file_out, path, FILE_READ | FILE_DIRECT);
    return err ? err : ERR_CORRUPT;
}

/* What lies behind generations[index], where the scan stopped: started segments and blocks that should not be. */
static enum err scan_later_segments(struct scan *scan, size_t index)
{
    for (; index < scan->generation_count; index++) {
        struct file *file = NULL;
        struct log_segment_header header;
        enum err err = scan_open(scan, &file, &header, index);
        if (err == ERR_OK) {
            char by[64];
            snprintf(by, sizeof by, "header of %016" PRIx64 ".seg", header.generation);
            /* It was written after everything before it was durable, so it must have been reached. */
            scan_claim(scan, (struct log_place){header.generation, LOG_SEGMENT_HEADER_SIZE}, by);
            if (header.epoch > scan->recovery->epoch_max)
                scan->recovery->epoch_max = header.epoch;
        } else if (err == ERR_CORRUPT) {
            err = scan_behind(scan, file, NULL, scan->generations[index], LOG_SEGMENT_HEADER_SIZE);
        }
        file_close(file);
        if (err)
            return err;
    }
    return ERR_OK;
}

/* Enter a segment: does its header continue the log? */
static bool scan_enter(struct scan *scan, const struct log_segment_header *header, bool first)
{
    struct log_recovery *recovery = scan->recovery;
    if (!first && (log_place_compare(header->predecessor, recovery->end.place) != 0 || header->epoch < recovery->end.position.epoch ||
                   (header->is_repair ? header->first_sequence < recovery->end.position.sequence
                                      : header->first_sequence != recovery->end.position.sequence)))
        return false;
    if (first || header->epoch != recovery->end.position.epoch || header->start != scan->start) {
        scan_void_groups(scan);
        memset(scan->shard_blocks, 0, sizeof scan->shard_blocks);
    }
    if (first && header->predecessor.generation) /* what is before was not read, but where it ended is known */
        scan->sync_from = (struct log_place){header->generation, 0};
    scan->start = header->start;
    recovery->end.place = (struct log_place){header->generation, LOG_SEGMENT_HEADER_SIZE};
    recovery->end.position = (struct log_position){header->epoch, header->first_sequence};
    recovery->broker_id = header->broker_id;
    recovery->last_generation = header->generation;
    recovery->segment_count++;
    if (header->epoch > recovery->epoch_max)
        recovery->epoch_max = header->epoch;
    return true;
}

/* Where a segment ends by its successor's header, or UINT64_MAX when that does not say. */
static uint64_t scan_limit(struct scan *scan, size_t index)
{
    struct file *file;
    struct log_segment_header next;
    if (index + 1 >= scan->generation_count) /* a header that is valid does not name a predecessor further off, or is a repair's */
        return UINT64_MAX;
    if (log_segment_open(&file, &next, scan->fs, scan->dir, scan->generations[index + 1]) != ERR_OK)
        return UINT64_MAX;
    file_close(file);
    return next.predecessor.generation == scan->generations[index] ? next.predecessor.offset : UINT64_MAX;
}

/* Read the segments from generations[index] on until the log does not continue. */
static enum err scan_segments(struct scan *scan, size_t index)
{
    struct log_recovery *recovery = scan->recovery;
    for (size_t first = index; index < scan->generation_count; index++) {
        struct file *file = NULL;
        struct log_segment_header header;
        enum err err = scan_open(scan, &file, &header, index);
        if (err == ERR_CORRUPT || (!err && !scan_enter(scan, &header, index == first))) {
            file_close(file);
            break;
        }
        uint64_t size = 0, limit = scan_limit(scan, index);
        if (!err)
            err = file_size(file, &size);
        if (!err)
            err = scan_blocks(scan, file, &header, limit < size ? limit : size);
        bool whole = limit != UINT64_MAX && recovery->end.place.offset == limit;
        if (!err && !whole)
            err = scan_behind(scan, file, &header, header.generation, recovery->end.place.offset);
        file_close(file);
        if (err)
            return err;
        if (!whole) {
            index++;
            break;
        }
    }
    return scan_later_segments(scan, index);
}

/* The oldest segment from which the chain reaches the end without a hole. */
static enum err scan_oldest(struct scan *scan)
{
    struct log_recovery *recovery = scan->recovery;
    size_t index = scan->generation_count;
    recovery->oldest = recovery->end.position;
    while (index > 0 && scan->generations[index - 1] > recovery->last_generation)
        index--;
    for (uint64_t expected = recovery->last_generation; index > 0 && expected && scan->generations[index - 1] == expected; index--) {
        struct file *file;
        struct log_segment_header header;
        scan->generation = expected;
        enum err err = log_segment_open(&file, &header, scan->fs, scan->dir, expected);
        if (err == ERR_CORRUPT || err == ERR_VERSION)
            break;
        if (err)
            return err;
        file_close(file);
        recovery->oldest = (struct log_position){header.epoch, header.first_sequence};
        recovery->oldest_place = (struct log_place){expected, LOG_SEGMENT_HEADER_SIZE};
        expected = header.is_repair ? header.predecessor.generation : expected - 1;
    }
    return ERR_OK;
}

/* Write the bytes from `from` to `end` again, as they are, and sync. */
static enum err scan_rewrite(struct scan *scan, struct file *file, uint64_t from, uint64_t end)
{
    enum err err = ERR_OK;
    uint64_t alignment = file_is_direct(file) ? file_alignment(file) : FILE_ALIGNMENT_MIN;
    log_window_clear(&scan->window);
    for (from &= ~(alignment - 1); !err && from < end;) {
        const uint8_t *at;
        size_t size;
        err = log_window_get(&scan->window, &at, &size, file, from, alignment, align_up(end, alignment));
        if (!err && size == 0)
            err = ERR_IO; /* it was there when the blocks were accepted */
        if (!err)
            err = file_pwrite(file, at, size, from);
        from += size;
    }
    return err ? err : file_sync(file);
}

/* A write of the last start may have reached the disk's cache only, and a sync that failed has lost it there. So what nobody knows to be
 * durable is written again: what recovery accepted must stay accepted. */
static enum err scan_sync(struct scan *scan)
{
    const struct log_end *end = &scan->recovery->end;
    struct log_place from = scan->sync_from;
    char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    if (log_place_compare(scan->recovery->proof, from) > 0)
        from = scan->recovery->proof;
    for (size_t i = 0; i < scan->generation_count; i++) {
        struct file *file = NULL;
        uint64_t generation = scan->generations[i], size = 0;
        if (generation < from.generation || generation > end->place.generation)
            continue;
        scan->generation = generation;
        log_segment_name(name, generation);
        enum err err = file_path(path, scan->dir, name);
        if (!err)
            err = fs_open(scan->fs, &file, path, FILE_READ | FILE_WRITE | FILE_DIRECT);
        if (!err)
            err = file_size(file, &size);
        if (!err && generation == end->place.generation && end->place.offset < size)
            size = end->place.offset;
        if (!err)
            err = scan_rewrite(scan, file, generation == from.generation ? from.offset : 0, size);
        file_close(file);
        if (err)
            return err;
    }
    return end->place.generation ? fs_sync_dir(scan->fs, scan->dir) : ERR_OK;
}

static enum err scan_verdict(struct scan *scan)
{
    struct log_recovery *recovery = scan->recovery;
    if (log_place_compare(recovery->proof, recovery->end.place) <= 0) {
        recovery->proof = recovery->end.place;
        recovery->proof_by[0] = 0;
        return ERR_OK;
    }
    recovery->corrupt = true;
    recovery->corrupt_place = recovery->end.place;
    if (!recovery->last_generation) { /* not even the first segment's header */
        recovery->corrupt_place.generation = scan->generation_count ? scan->generations[0] : recovery->proof.generation;
        recovery->corrupt_place.offset = 0;
    }
    return err_set(scan->msg, ERR_CORRUPT,
                   "%s/%016" PRIx64 ".seg: does not continue at offset %" PRIu64
                   "; see `tidegate-broker repair`; %s proves that the log was durable up to %016" PRIx64 ".seg:%" PRIu64,
                   scan->dir, recovery->corrupt_place.generation, recovery->corrupt_place.offset, recovery->proof_by,
                   recovery->proof.generation, recovery->proof.offset);
}

/* Reading segment `generation` failed, or a block of it. */
static void scan_say(const struct scan *scan, enum err err)
{
    char path[FILE_PATH_MAX], name[LOG_SEGMENT_NAME_SIZE];
    log_segment_name(name, scan->generation);
    if (err == ERR_VERSION && file_path(path, scan->dir, name) == ERR_OK)
        (void)log_version_refuse(scan->fs, path, scan->recovery->end.place.offset, LOG_SEGMENT_VERSION, scan->msg);
    else
        err_set(scan->msg, err, "%s/%s: %s", scan->dir, name, err_text(err));
}

enum err log_recovery_run(struct log_recovery *recovery_out, struct fs *fs, const char *dir, const struct log_recovery_options *options,
                          struct errmsg *msg)
{
    static const struct log_recovery_options none;
    struct scan *scan = (struct scan *)calloc(1, sizeof *scan);
    memset(recovery_out, 0, sizeof *recovery_out);
    if (!scan)
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    scan->recovery = recovery_out;
    scan->fs = fs;
    scan->dir = dir;
    scan->msg = msg;
    scan->needed = UINT64_MAX;
    recovery_out->end.position.sequence = 1;
    enum err err = log_window_init(&scan->window);
    if (!err)
        err = log_segment_list(fs, dir, &scan->generations, &scan->generation_count, NULL);
    if (err) {
        if (err != ERR_NOTFOUND) {
            err_set(msg, err, "%s: %s", dir, err_text(err));
            goto out;
        }
        /* No directory: a new log, unless there is a checkpoint of one. */
        if (options && options->checkpoint.generation)
            scan_claim(scan, options->checkpoint_end.generation ? options->checkpoint_end : options->checkpoint, "checkpoint");
        err = scan_verdict(scan);
        goto out;
    }
    err = scan_claims(scan, options ? options : &none);
    if (err)
        goto out;
    size_t index = 0;
    while (scan->needed != UINT64_MAX && index + 1 < scan->generation_count && scan->generations[index + 1] <= scan->needed)
        index++;
    err = scan_segments(scan, index);
    if (!err)
        scan_void_groups(scan);
    if (!err)
        err = scan_oldest(scan);
    if (!err)
        err = scan_sync(scan);
    if (err) {
        scan_say(scan, err); /* without segments nothing can fail */
        goto out;
    }
    err = scan_verdict(scan);
out:
    log_window_deinit(&scan->window);
    free(scan->generations);
    free(scan);
    return err;
}
