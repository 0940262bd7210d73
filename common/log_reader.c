/* The log reader: one block at a time, up to the durable end and never past it.
 *
 * `place` is where the next block begins, `expected` the sequence it must begin with, `wanted` the next record to give out. Three things
 * can stand in the way: nothing is durable yet (ERR_AGAIN); the segment was reused because no cursor of ours held it (ERR_GAP, a jump to
 * the oldest segment); the log is not what it was (ERR_CORRUPT, final). Which of the last two it is, the directory says: a segment that was
 * reused no longer has its name. */
#include "common/log_reader.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "common/log_window.h"

#include <inttypes.h>
#include <stdlib.h>

#define LOG_READER_STATE_TRIES 3
#define LOG_READER_GROUP_KEEP ((size_t)1 << 20) /* bytes of a group's buffer that are kept for the next */

/* NOLINTNEXTLINE(misc-redundant-expression): so it is meant */
_Static_assert(LOG_READER_BUFFER_SIZE == LOG_WINDOW_SIZE, "one buffer, two names");

/* A large record on its way, of one shard. */
struct reader_group {
    uint8_t *data;
    size_t capacity;
    size_t size; /* whole record */
    size_t got;  /* bytes so far */
    struct log_place first;
    bool open;
};

enum reader_gap_kind {
    READER_GAP_NONE,
    READER_GAP_SKIP, /* go on where we are, with a later record */
    READER_GAP_JUMP, /* go on at the oldest segment */
};

struct log_reader {
    struct fs *fs;
    char *dir;
    struct log_state state;
    struct log_end durable; /* sequence 0: no state seen */
    bool at_oldest;         /* no position given: begin at the oldest segment */
    uint64_t oldest;        /* found so */
    struct log_place place;
    struct log_place block_place; /* of the block in hand */
    uint32_t epoch;               /* of the last record given out */
    uint64_t broker_id;
    uint64_t wanted;
    uint64_t expected; /* 0: not known */

    struct file *file; /* the segment of `place`, or NULL */
    struct log_segment_header segment;
    bool has_segment;               /* `segment` holds the last one entered */
    uint64_t segment_end;           /* by the successor's header; UINT64_MAX: not known */
    struct log_segment_header next; /* the successor: known with segment_end */
    struct log_window window;

    struct log_block_view view;
    uint64_t pass_bytes; /* passed over in this call */
    bool in_block;
    bool pass_stateless;
    uint8_t *scratch;
    uint64_t passed_blocks[LOG_SHARD_MAX]; /* of the start of `segment` */
    struct reader_group groups[LOG_SHARD_MAX];
    struct reader_group given; /* whose record was given out last */

    enum reader_gap_kind gap_kind;
    struct log_reader_gap gap;
    struct log_place gap_place;
    enum err failed;
    struct errmsg failed_msg;
    struct log_reader_stats stats;
};

enum err log_reader_open(struct log_reader **reader_out, struct fs *fs, const char *dir, const struct log_cursor_value *from,
                         struct errmsg *msg)
{
    struct log_reader *reader = (struct log_reader *)calloc(1, sizeof *reader);
    if (!reader)
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    reader->fs = fs;
    reader->dir = strdup(dir);
    reader->scratch = (uint8_t *)malloc(LOG_BLOCK_BODY_MAX);
    reader->segment_end = UINT64_MAX;
    enum err err = log_window_init(&reader->window);
    if (err || !reader->dir || !reader->scratch) {
        log_reader_close(reader);
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    }
    if (from && from->place.generation) {
        reader->place = from->reopen.generation ? from->reopen : from->place;
        reader->wanted = from->position.sequence;
        reader->epoch = from->position.epoch;
        reader->broker_id = from->broker_id;
    } else {
        reader->at_oldest = true;
    }
    *reader_out = reader;
    return ERR_OK;
}

void log_reader_close(struct log_reader *reader)
{
    if (!reader)
        return;
    for (size_t i = 0; i < LOG_SHARD_MAX; i++)
        free(reader->groups[i].data);
    free(reader->given.data);
    log_state_close(&reader->state);
    file_close(reader->file);
    log_window_deinit(&reader->window);
    free(reader->scratch);
    free(reader->dir);
    free(reader);
}

/* The end of this reader, with the place. */
static enum err reader_corrupt(struct log_reader *reader, struct log_place place, const char *why)
{
    reader->failed = ERR_CORRUPT;
    return err_set(&reader->failed_msg, ERR_CORRUPT, "%s/%016" PRIx64 ".seg: offset %" PRIu64 ": %s", reader->dir, place.generation,
                   place.offset, why);
}

static void reader_void_group(struct log_reader *reader, struct reader_group *group)
{
    if (group->open)
        reader->stats.void_group_count++;
    group->open = false;
    if (group->capacity > LOG_READER_GROUP_KEEP) {
        free(group->data);
        group->data = NULL;
        group->capacity = 0;
    }
}

static void reader_void_groups(struct log_reader *reader)
{
    for (size_t i = 0; i < LOG_SHARD_MAX; i++)
        reader_void_group(reader, &reader->groups[i]);
}

/* All of the block in hand was given out. */
static void reader_block_done(struct log_reader *reader)
{
    reader->in_block = false;
    reader->passed_blocks[reader->view.header.shard] = reader->view.header.shard_block;
}

static void reader_leave_segment(struct log_reader *reader)
{
    file_close(reader->file);
    reader->file = NULL;
    reader->segment_end = UINT64_MAX;
    log_window_clear(&reader->window);
}

/* Look at the state file. A slot may be caught half written: then the other one counts, or the next try. */
static enum err reader_refresh(struct log_reader *reader)
{
    struct log_state_value value;
    enum err err = ERR_OK;
    if (!reader->state.slots.file) {
        err = log_state_open(&reader->state, reader->fs, reader->dir, false);
        if (err)
            return err == ERR_NOTFOUND ? ERR_AGAIN : err;
    }
    for (int i = 0; i < LOG_READER_STATE_TRIES; i++) {
        err = log_state_read(&reader->state, &value);
        if (err != ERR_CORRUPT)
            break;
    }
    if (err)
        return err == ERR_NOTFOUND ? ERR_AGAIN : err;
    if (log_place_compare(value.end.place, reader->durable.place) > 0)
        reader->durable = value.end;
    return ERR_OK;
}

/* What we read does not hold. If our segment was reused, records may be missing; otherwise the log is damaged. */
static enum err reader_lost(struct log_reader *reader, const char *why)
{
    struct log_segment_header oldest;
    enum err err = log_segment_find_oldest(&oldest, reader->fs, reader->dir);
    if (err && err != ERR_NOTFOUND)
        return err;
    if (err || oldest.generation <= reader->place.generation)
        return reader_corrupt(reader, reader->place, why);
    reader->gap_kind = READER_GAP_JUMP;
    reader->gap_place = (struct log_place){oldest.generation, LOG_SEGMENT_HEADER_SIZE};
    reader->gap = (struct log_reader_gap){.from = reader->wanted, .to = oldest.first_sequence};
    if (reader->wanted < oldest.first_sequence)
        return ERR_GAP;
    if (reader->wanted > oldest.first_sequence && reader->expected >= reader->wanted) {
        reader->gap_kind = READER_GAP_NONE;
        return reader_corrupt(reader, reader->place, "the oldest segment begins before records that were read already");
    }
    /* Nothing is missing: segments that are gone were empty or wholly read, or stood before the position for the sake of an open group,
     * whose record is found missing at its last block. */
    reader->gap.to = reader->wanted;
    log_reader_accept_gap(reader);
    return ERR_OK;
}

/* Open the segment of `place`.
 * Returns ERR_OK also when the place was moved (file stays NULL then: look again). */
static enum err reader_enter_segment(struct log_reader *reader)
{
    struct log_segment_header header;
    struct file *file;
    enum err err = log_segment_open(&file, &header, reader->fs, reader->dir, reader->place.generation);
    if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
        return reader_lost(reader, err == ERR_NOTFOUND ? "the segment is missing" : "the segment's header is not valid");
    if (err)
        return err;
    bool follows = reader->has_segment && reader->segment.generation + 1 == header.generation;
    if ((follows && header.epoch < reader->segment.epoch) ||
        (reader->expected && header.first_sequence != reader->expected && reader->place.offset == LOG_SEGMENT_HEADER_SIZE)) {
        file_close(file);
        return reader_corrupt(reader, reader->place, "the segment does not continue its predecessor");
    }
    if (reader->has_segment && header.broker_id == reader->segment.broker_id && header.epoch == reader->segment.epoch &&
        header.start != reader->segment.start)
        reader->stats.start_clash_count++;
    bool is_new_start = !reader->has_segment || header.epoch != reader->segment.epoch || header.start != reader->segment.start;
    if (reader->has_segment && is_new_start)
        reader_void_groups(reader);
    if (is_new_start)
        memset(reader->passed_blocks, 0, sizeof reader->passed_blocks);
    reader_leave_segment(reader);
    reader->file = file;
    reader->segment = header;
    reader->has_segment = true;
    reader->broker_id = header.broker_id;
    return ERR_OK;
}

/* Begin at the oldest segment. */
static enum err reader_start_oldest(struct log_reader *reader)
{
    struct log_segment_header oldest;
    enum err err = log_segment_find_oldest(&oldest, reader->fs, reader->dir);
    if (err)
        return err == ERR_NOTFOUND ? ERR_AGAIN : err;
    reader->at_oldest = false;
    reader->place = (struct log_place){oldest.generation, LOG_SEGMENT_HEADER_SIZE};
    reader->wanted = reader->oldest = oldest.first_sequence;
    reader->epoch = oldest.epoch;
    reader->broker_id = oldest.broker_id;
    return ERR_OK;
}

/* The durable end is in a later segment: how far does ours go? */
static enum err reader_find_end(struct log_reader *reader)
{
    struct log_segment_header next;
    enum err err = log_segment_find_next(&next, reader->fs, reader->dir, reader->place.generation);
    if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
        return reader_lost(reader, "the next segment is missing or its header is not valid");
    if (err)
        return err;
    if (next.is_repair && log_place_compare(next.predecessor, reader->place) <= 0)
        reader->segment_end = reader->place.offset; /* what stands from here on was given up, the whole segment perhaps */
    else if (next.predecessor.generation == reader->place.generation)
        reader->segment_end = next.predecessor.offset;
    else
        return reader_corrupt(reader, reader->place, "the next segment names another predecessor");
    reader->next = next;
    return ERR_OK;
}

/* From the end of a segment to the next. Behind a repair the sequences go on higher. */
static enum err reader_cross(struct log_reader *reader)
{
    const struct log_segment_header *next = &reader->next;
    reader_leave_segment(reader);
    reader->place = (struct log_place){next->generation, LOG_SEGMENT_HEADER_SIZE};
    reader->broker_id = next->broker_id;
    /* Now, and not when the first block there is read: until then the parts would hold all segments behind them. */
    if (reader->has_segment && (next->epoch != reader->segment.epoch || next->start != reader->segment.start))
        reader_void_groups(reader);
    if (!next->is_repair)
        return ERR_OK;
    reader_void_groups(reader);
    reader->expected = next->first_sequence;
    if (reader->wanted >= reader->expected)
        return ERR_OK;
    reader->gap_kind = READER_GAP_SKIP;
    reader->gap = (struct log_reader_gap){.from = reader->wanted, .to = reader->expected, .is_repair = true};
    return ERR_GAP;
}

/* Up to which offset may be read in the segment of `place`? ERR_AGAIN: no further for now. ERR_OK with `*limit_out` 0: the place has moved.
 */
static enum err reader_limit(struct log_reader *reader, uint64_t *limit_out)
{
    *limit_out = 0;
    for (int refreshed = 0;; refreshed++) {
        uint64_t durable_generation = reader->durable.place.generation;
        if (durable_generation > reader->place.generation) {
            if (reader->segment_end == UINT64_MAX) {
                enum err err = reader_find_end(reader);
                if (err || reader->segment_end == UINT64_MAX)
                    return err;
            }
            if (reader->place.offset > reader->segment_end)
                return reader_corrupt(reader, reader->place, "the position is past the end of its segment");
            if (reader->place.offset < reader->segment_end) {
                *limit_out = reader->segment_end;
                return ERR_OK;
            }
            return reader_cross(reader);
        }
        if (durable_generation == reader->place.generation && reader->place.offset < reader->durable.place.offset) {
            *limit_out = reader->durable.place.offset;
            return ERR_OK;
        }
        if (refreshed)
            return ERR_AGAIN;
        enum err err = reader_refresh(reader);
        if (err)
            return err;
    }
}

/* Does a block continue what was read? */
static enum err reader_check_block(struct log_reader *reader)
{
    const struct log_block_header *header = &reader->view.header;
    if (!log_segment_holds(&reader->segment, header, reader->place.offset))
        return reader_lost(reader, "a block of another place stands here");
    if (reader->expected && header->sequence != reader->expected)
        return reader_corrupt(reader, reader->place, "the block's sequence does not continue");
    if (!reader->expected && header->sequence > reader->wanted) {
        reader->gap_kind = READER_GAP_SKIP;
        reader->gap = (struct log_reader_gap){.from = reader->wanted, .to = header->sequence};
        return ERR_GAP;
    }
    return ERR_OK;
}

/* Nothing in this block is wanted: step behind it. */
static void reader_pass_over(struct log_reader *reader)
{
    const struct log_block_header *header = &reader->view.header;
    if (header->flags & LOG_BLOCK_GROUP_FIRST)
        reader_void_group(reader, &reader->groups[header->shard]);
    reader->expected = header->sequence + header->record_count;
    if (reader->wanted < reader->expected) {
        reader->wanted = reader->expected;
        reader->epoch = header->epoch;
    }
    reader->block_place = reader->place;
    reader->place.offset += header->size;
    reader->pass_bytes += header->size;
    reader->stats.passed_count++;
    reader->stats.byte_count += header->size;
    reader_block_done(reader);
}

/* Read and check the block at `place`, and step behind it. ERR_OK without `in_block`: look again. */
static enum err reader_next_block(struct log_reader *reader)
{
    uint64_t limit;
    const uint8_t *at;
    size_t size;
    enum err err = reader_limit(reader, &limit);
    if (err || !limit)
        return err;
    if (!reader->file) {
        err = reader_enter_segment(reader);
        if (err || !reader->file)
            return err;
    }
    err = log_window_get(&reader->window, &at, &size, reader->file, reader->place.offset, LOG_BLOCK_SIZE_MAX, limit);
    if (err)
        return err;
    err = reader->pass_stateless ? log_block_view_parse_header(&reader->view, at, size) : ERR_OK;
    bool pass_over = !err && reader->pass_stateless && !(reader->view.header.flags & LOG_BLOCK_STATE);
    if (!err && !pass_over)
        err = log_block_view_parse(&reader->view, at, size);
    if (err == ERR_VERSION) {
        reader->failed = err;
        return err_set(&reader->failed_msg, err, "%s/%016" PRIx64 ".seg: offset %" PRIu64 ": %s", reader->dir, reader->place.generation,
                       reader->place.offset, err_text(err));
    }
    if (err)
        return reader_lost(reader, "no valid block where the log is durable");
    err = reader_check_block(reader);
    if (err || !reader->file)
        return err;
    if (pass_over) {
        reader_pass_over(reader);
        return ERR_OK;
    }
    err = log_block_view_unpack(&reader->view, reader->scratch);
    if (err)
        return reader_corrupt(reader, reader->place, "the body does not unpack");
    reader->expected = reader->view.header.sequence + reader->view.header.record_count;
    reader->block_place = reader->place;
    reader->place.offset += reader->view.header.size;
    reader->in_block = true;
    reader->stats.block_count++;
    reader->stats.byte_count += reader->view.header.size;
    return ERR_OK;
}

/* Bytes as they arrive: the buffer grows with them, never with what the header announces. */
static enum err reader_group_add(struct reader_group *group, struct span part)
{
    if (group->got + part.size > group->capacity) {
        size_t capacity = group->capacity ? 2 * group->capacity : 4 * (size_t)LOG_BLOCK_BODY_MAX;
        while (capacity < group->got + part.size)
            capacity *= 2;
        uint8_t *data = (uint8_t *)realloc(group->data, capacity);
        if (!data)
            return ERR_NOMEM;
        group->data = data;
        group->capacity = capacity;
    }
    memcpy(group->data + group->got, part.data, part.size);
    group->got += part.size;
    return ERR_OK;
}

/* The block in hand is part of a group. ERR_OK with `*record_out` empty: nothing to give out yet. */
static enum err reader_group_block(struct log_reader *reader, struct span *record_out)
{
    const struct log_block_header *header = &reader->view.header;
    struct reader_group *group = &reader->groups[header->shard];
    *record_out = span_of(NULL, 0);
    if (header->flags & LOG_BLOCK_GROUP_FIRST) {
        reader_void_group(reader, group);
        group->open = true;
        group->first = reader->block_place;
        group->size = header->group_size;
        group->got = 0;
    }
    /* Parts of a group that began before we did are passed over; if its record is wanted, it is missing. */
    bool whole = group->open && group->got == header->group_offset && group->size == header->group_size;
    if (whole) {
        enum err err = reader_group_add(group, reader->view.body);
        if (err)
            return err; /* the block stays in hand: try again */
    } else {
        reader_void_group(reader, group);
    }
    reader_block_done(reader);
    if (!(header->flags & LOG_BLOCK_GROUP_LAST))
        return ERR_OK;
    if (header->sequence < reader->wanted) {
        group->open = false;
        return ERR_OK;
    }
    if (!whole) {
        reader->gap_kind = READER_GAP_SKIP;
        reader->gap = (struct log_reader_gap){.from = header->sequence, .to = header->sequence + 1};
        return ERR_GAP;
    }
    group->open = false;
    struct reader_group swap = reader->given;
    reader->given = *group;
    *group = swap;
    if (reader->given.got < RECORD_SIZE_MIN || load_le32(reader->given.data) != reader->given.got)
        return reader_corrupt(reader, reader->block_place, "the record of a group has another size");
    reader->stats.group_count++;
    *record_out = span_of(reader->given.data, reader->given.got);
    return ERR_OK;
}

/* The next record of the block in hand, if it has one that is wanted. */
static enum err reader_block_record(struct log_reader *reader, struct span *record_out, uint64_t *sequence_out)
{
    if (reader->view.header.flags & LOG_BLOCK_GROUP) {
        *sequence_out = reader->view.header.sequence;
        return reader_group_block(reader, record_out);
    }
    do {
        enum err err = log_block_view_next(&reader->view, record_out, sequence_out);
        if (err == ERR_AGAIN) {
            *record_out = span_of(NULL, 0);
            reader_block_done(reader);
            return ERR_OK;
        }
        if (err)
            return reader_corrupt(reader, reader->block_place, "the records do not fill their block");
    } while (*sequence_out < reader->wanted);
    return ERR_OK;
}

static void reader_give(struct log_reader *reader, struct log_reader_item *item_out, struct span record, uint64_t sequence)
{
    item_out->bytes = record;
    item_out->broker_id = reader->view.header.broker_id;
    item_out->position = (struct log_position){reader->view.header.epoch, sequence};
    item_out->shard = reader->view.header.shard;
    item_out->shard_block = reader->view.header.shard_block;
    reader->epoch = reader->view.header.epoch;
    reader->wanted = sequence + 1;
    reader->stats.record_count++;
    /* A finished block does not hold the cursor's place back. */
    if (reader->in_block && reader->view.given_count == reader->view.header.record_count && reader->view.rest.size == 0)
        reader_block_done(reader);
}

enum err log_reader_next(struct log_reader *reader, struct log_reader_item *item_out, struct errmsg *msg)
{
    enum err err = ERR_OK;
    if (reader->given.capacity > LOG_READER_GROUP_KEEP) { /* the record given out last time is over */
        free(reader->given.data);
        memset(&reader->given, 0, sizeof reader->given);
    }
    reader->pass_bytes = 0;
    while (!err && !reader->failed) {
        if (reader->pass_bytes >= LOG_READER_PASS_BYTES) {
            *item_out = (struct log_reader_item){.broker_id = reader->broker_id, .position = {reader->epoch, reader->wanted}};
            return ERR_OK;
        }
        if (reader->gap_kind != READER_GAP_NONE)
            return err_set(msg, ERR_GAP, "%s: records %" PRIu64 " to %" PRIu64 " are gone", reader->dir, reader->gap.from,
                           reader->gap.to - 1);
        if (reader->in_block) {
            struct span record;
            uint64_t sequence;
            err = reader_block_record(reader, &record, &sequence);
            if (!err && record.size) {
                reader_give(reader, item_out, record, sequence);
                return ERR_OK;
            }
        } else {
            err = reader->durable.position.sequence ? ERR_OK : reader_refresh(reader);
            if (!err && reader->at_oldest)
                err = reader_start_oldest(reader);
            if (!err)
                err = reader_next_block(reader);
        }
        if (err == ERR_GAP)
            err = ERR_OK; /* said above */
    }
    if (reader->failed)
        return err_set(msg, reader->failed, "%s", reader->failed_msg.text);
    return err == ERR_AGAIN ? err
                            : err_set(msg, err, "%s/%016" PRIx64 ".seg: offset %" PRIu64 ": %s", reader->dir, reader->place.generation,
                                      reader->place.offset, err_text(err));
}

struct log_reader_gap log_reader_gap(const struct log_reader *reader) { return reader->gap; }

void log_reader_accept_gap(struct log_reader *reader)
{
    if (reader->gap_kind == READER_GAP_NONE)
        return;
    reader->wanted = reader->gap.to;
    if (reader->gap_kind == READER_GAP_JUMP) {
        reader_leave_segment(reader);
        reader_void_groups(reader);
        reader->place = reader->gap_place;
        reader->expected = 0;
        reader->has_segment = false;
        reader->in_block = false;
    }
    reader->gap_kind = READER_GAP_NONE;
}

void log_reader_cursor(const struct log_reader *reader, struct log_cursor_value *value_out)
{
    value_out->broker_id = reader->broker_id;
    value_out->position = (struct log_position){reader->epoch, reader->wanted};
    value_out->place = reader->in_block ? reader->block_place : reader->place;
    value_out->reopen = value_out->place;
    for (size_t i = 0; i < LOG_SHARD_MAX; i++) {
        const struct reader_group *group = &reader->groups[i];
        if (group->open && log_place_compare(group->first, value_out->reopen) < 0)
            value_out->reopen = group->first;
    }
}

uint64_t log_reader_oldest(const struct log_reader *reader) { return reader->oldest; }

void log_reader_pass_over_stateless(struct log_reader *reader) { reader->pass_stateless = true; }

uint64_t log_reader_passed_blocks(const struct log_reader *reader, uint16_t shard, uint32_t epoch)
{
    CHECK(shard < LOG_SHARD_MAX);
    return reader->has_segment && reader->segment.epoch == epoch ? reader->passed_blocks[shard] : 0;
}

void log_reader_tell_end(struct log_reader *reader, struct log_end end)
{
    if (log_place_compare(end.place, reader->durable.place) > 0)
        reader->durable = end;
}

struct log_end log_reader_durable_end(const struct log_reader *reader) { return reader->durable; }

void log_reader_stats(const struct log_reader *reader, struct log_reader_stats *stats_out)
{
    *stats_out = reader->stats;
    stats_out->read_count = reader->window.read_count;
    stats_out->lag_records = reader->durable.position.sequence > reader->wanted ? reader->durable.position.sequence - reader->wanted : 0;
}
