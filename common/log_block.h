/* A block: the unit in which the log is written, checked and read.
 *
 * A shard fills a block's body with the records of a loop turn and seals it (LZ4 when that helps, checksum of the body, padding); the log
 * thread gives it its place, its sequence and its header, and writes it; a reader checks and unpacks it through a view. docs/formats.md has
 * the byte table and says when a block is valid.
 *
 * A record larger than a body is a group of blocks (first, middle..., last), never compressed, and counts as one record of the last of
 * them. Blocks of other records may stand between the blocks of a group. A shard has at most one group open: a first block voids an open
 * group of the same shard, a new epoch voids all.
 *
 * Life of a block: pool get -> append / reserve + commit -> seal [shard] -> header and write [log thread] -> pool put [the shard again].
 * Owner: one thread at a time; handing over is the ring's business. A pool belongs to one shard. Bounds: a pool has `block_count_max`
 * blocks and one more as scratch for LZ4; memory is allocated when first needed and kept.
 *
 *     struct log_block *block = log_block_pool_get(pool);     NULL: back-pressure, stop reading sockets
 *     uint8_t *at = log_block_reserve(block, size);           NULL: the block is full, seal it and get another
 *     if (at) log_block_commit(block, record_encode(at, &rec), record_is_state(&rec));
 *     log_block_seal(pool, block);
 *
 * Thread: the owner. Pure (memory only). */
#ifndef TIDEGATE_COMMON_LOG_BLOCK_H
#define TIDEGATE_COMMON_LOG_BLOCK_H

#include "common/bytes.h"
#include "common/err.h"
#include "common/record.h"

#define LOG_BLOCK_HEADER_SIZE 128
#define LOG_BLOCK_BODY_MAX 65536u
/* A whole block at the largest alignment. */
#define LOG_BLOCK_SIZE_MAX ((LOG_BLOCK_HEADER_SIZE + LOG_BLOCK_BODY_MAX + 4095u) & ~4095u)
#define LOG_BLOCK_LZ4_MIN 4096u              /* bytes of body below which LZ4 is not tried */
#define LOG_GROUP_TURN_MAX ((size_t)1 << 20) /* bytes of a large record that one loop turn copies */
#define LOG_SHARD_MAX 256u

/* A position in the stream of records of one broker id: sequences start at 1 and go on over epochs without a break; the epoch says which
 * start of the broker wrote it. As an end it is exclusive: everything below is meant. Sequence 0: unknown. */
struct log_position {
    uint32_t epoch;
    uint64_t sequence;
};

/* A place on disk: byte `offset` of the segment with that generation (1..; 0: nowhere). As an end it is exclusive. */
struct log_place {
    uint64_t generation;
    uint64_t offset;
};

static inline int log_place_compare(struct log_place a, struct log_place b)
{
    if (a.generation != b.generation)
        return a.generation < b.generation ? -1 : 1;
    return a.offset == b.offset ? 0 : a.offset < b.offset ? -1 : 1;
}

static inline int log_position_compare(struct log_position a, struct log_position b)
{
    if (a.epoch != b.epoch)
        return a.epoch < b.epoch ? -1 : 1;
    return a.sequence == b.sequence ? 0 : a.sequence < b.sequence ? -1 : 1;
}

/* The durable end, or any other end: what comes next, and where. */
struct log_end {
    struct log_position position; /* of the next record */
    struct log_place place;       /* of the next block */
};

enum log_block_flag {
    LOG_BLOCK_LZ4 = 1,
    LOG_BLOCK_GROUP_FIRST = 2,
    LOG_BLOCK_GROUP_MIDDLE = 4,
    LOG_BLOCK_GROUP_LAST = 8,
    LOG_BLOCK_STATE = 16, /* some record of it is for the checkpoint, too (record_is_state) */
    LOG_BLOCK_GROUP = LOG_BLOCK_GROUP_FIRST | LOG_BLOCK_GROUP_MIDDLE | LOG_BLOCK_GROUP_LAST,
};

struct log_block {
    uint8_t *memory;           /* LOG_BLOCK_SIZE_MAX bytes at LOG_BLOCK alignment 4096; header, body, padding */
    uint32_t body_size;        /* bytes filled in, before sealing; stored bytes after */
    uint32_t body_max;         /* */
    uint32_t raw_size;         /* set by seal */
    uint32_t body_crc;         /* set by seal */
    uint32_t record_count;     /* */
    uint32_t size;             /* set by seal: the whole block on disk, a multiple of the alignment */
    uint32_t group_offset;     /* of a group's block: where its part begins in the record */
    uint32_t group_size;       /* of a group's block: size of the whole record */
    uint16_t flags;            /* enum log_block_flag */
    uint16_t shard;            /* index */
    uint64_t shard_block;      /* set by seal: the shard's own count, 1 for its first block of this start */
    bool sealed;               /* */
    struct log_position first; /* set by log_writer_begin, to be used after log_writer_finish: where its records begin */
    struct log_place place;    /* likewise */
    struct log_block *next;    /* in the pool's free list; free for the owner's lists otherwise */
};

struct log_block_pool {
    struct log_block *blocks; /* block_count_max of them */
    struct log_block *free;   /* list */
    uint8_t *scratch;         /* where LZ4 writes; swapped with the block's memory. The next block is filled where the last one was */
    void *lz4;                /* its state */
    uint32_t block_count_max; /* */
    uint32_t used_count;      /* given out now */
    uint32_t body_max;        /* */
    uint32_t alignment;       /* of the disk */
    uint16_t shard;           /* */
    uint64_t sealed_count;    /* blocks sealed so far: what the gate's records wait for */
};

/* Make a pool of at most `block_count_max` blocks for shard `shard` on a disk with `alignment` (log_writer_alignment()).
 * body_max  1..LOG_BLOCK_BODY_MAX; LOG_BLOCK_BODY_MAX but in tests.
 * Returns 0 or ERR_NOMEM. */
must_check enum err log_block_pool_init(struct log_block_pool *pool, uint16_t shard, uint32_t block_count_max, uint32_t body_max,
                                        uint32_t alignment);
/* All blocks must have come back. */
void log_block_pool_deinit(struct log_block_pool *pool);

/* An empty block, or NULL when all are out (back-pressure) or memory is short. To be returned with log_block_pool_put. */
struct log_block *log_block_pool_get(struct log_block_pool *pool);
void log_block_pool_put(struct log_block_pool *pool, struct log_block *block);

/* Room for one record of `size` bytes at the end of the body, or NULL when it does not fit. Commit what was encoded there, or do nothing.
 */
uint8_t *log_block_reserve(struct log_block *block, size_t size);
/* is_state: record_is_state() of it; readers of the checkpoint pass over blocks without such a record. */
void log_block_commit(struct log_block *block, size_t size, bool is_state);

/* The record committed last has grown by `size` bytes, which were reserved behind it. */
void log_block_grow(struct log_block *block, size_t size);

/* reserve + encode + commit. Returns 0, ERR_FULL (seal this one, get another), ERR_TOOLARGE (larger than any body: a group). */
must_check enum err log_block_append(struct log_block *block, const struct record *rec);

/* Finish the body: LZ4, checksum, padding, the shard's block count. The block must hold a record or a part of one. */
void log_block_seal(struct log_block_pool *pool, struct log_block *block);

/* A large record on its way into blocks: the head of record_encode_head() and the payload, both borrowed until done. */
struct log_block_group {
    struct span head;
    struct span payload;
    size_t offset; /* bytes handed out */
    bool is_state;
};

/* is_state: record_is_state() of the record; all its blocks say so. */
void log_block_group_init(struct log_block_group *group, struct span head, struct span payload, bool is_state);
/* Fill the empty `block` with the next part; the caller seals it. Returns the bytes copied. The caller loops up to LOG_GROUP_TURN_MAX a
 * turn. */
size_t log_block_group_next(struct log_block_group *group, struct log_block *block);
bool log_block_group_done(const struct log_block_group *group);

/* The header, decoded. */
struct log_block_header {
    uint16_t flags;
    uint16_t shard;
    uint32_t epoch;
    uint64_t broker_id;
    uint64_t generation;
    uint64_t offset;               /* of this block in its segment */
    uint64_t start;                /* random number of the broker's start, as in the segment header */
    uint64_t sequence;             /* of the first record */
    uint64_t shard_block;          /* */
    uint32_t record_count;         /* 0 for a group's first and middle */
    uint32_t stored_size;          /* of the body on disk */
    uint32_t raw_size;             /* of the body unpacked */
    uint32_t body_crc;             /* of the stored bytes */
    uint32_t size;                 /* of the whole block with padding */
    uint32_t group_offset;         /* */
    uint32_t group_size;           /* */
    struct log_end durable_before; /* the durable end when the write of this block began */
};

/* Write the header with its checksum into the first LOG_BLOCK_HEADER_SIZE bytes at `at`. Log thread. */
void log_block_header_encode(uint8_t *at, const struct log_block_header *header);

/* Check and decode a header: magic, checksum, version, and that sizes, flags and counts are possible. `size` bytes are there.
 * Returns 0, ERR_AGAIN (fewer than LOG_BLOCK_HEADER_SIZE bytes), ERR_CORRUPT, ERR_VERSION. */
must_check enum err log_block_header_decode(struct log_block_header *header_out, const uint8_t *at, size_t size);

/* A block as a reader sees it. */
struct log_block_view {
    struct log_block_header header;
    struct span stored; /* body on disk, borrowed */
    struct span body;   /* unpacked, borrowed from `stored` or from the caller's scratch */
    struct span rest;   /* records not yet given out */
    uint32_t given_count;
};

/* Check a block's header alone; the body's bytes are there (ERR_AGAIN otherwise, as below) and not looked at. Returns as the next. */
must_check enum err log_block_view_parse_header(struct log_block_view *view_out, const uint8_t *at, size_t size);

/* Check a block's header and body at `at`, where `size` bytes are there.
 * Returns 0, ERR_AGAIN (the header is good, the bytes end before the block does: header.size says how many it takes), ERR_CORRUPT,
 * ERR_VERSION. */
must_check enum err log_block_view_parse(struct log_block_view *view_out, const uint8_t *at, size_t size);

/* Unpack the body into `scratch` of LOG_BLOCK_BODY_MAX bytes (used only when it is compressed). Returns 0 or ERR_CORRUPT. */
must_check enum err log_block_view_unpack(struct log_block_view *view, uint8_t *scratch);

/* The next record of an unpacked block that is no part of a group. Returns 0, ERR_AGAIN after the last, ERR_CORRUPT when framing and count
 * disagree.
 * sequence_out  of that record. */
must_check enum err log_block_view_next(struct log_block_view *view, struct span *record_out, uint64_t *sequence_out);

#endif
