/* A segment: one file of the log, a header of 4096 B and then blocks one after the other.
 *
 * `<generation as 16 hex digits>.seg`; generations count up by one without holes from the oldest to the newest. The header says who wrote
 * it and where the predecessor ends, so nobody needs to guess where the blocks of a segment stop. A file with the right name whose header
 * is not valid for that generation is one prepared for later: nothing in it counts. `spare-*.seg` are files on their way to be prepared.
 * A *repair* segment alone may leave out generations and sequences behind its predecessor's end: what stood there was given up by an
 * operator, and no number that was ever used is used again.
 * Segments are recycled with their old contents, which is why every block names its generation and start. */
#ifndef TIDEGATE_COMMON_LOG_SEGMENT_H
#define TIDEGATE_COMMON_LOG_SEGMENT_H

#include "common/file.h"
#include "common/log_block.h"

#define LOG_SEGMENT_VERSION 1 /* and of the blocks in it */
#define LOG_SEGMENT_HEADER_SIZE 4096
#define LOG_SEGMENT_SIZE_DEFAULT ((uint64_t)64 << 20)
#define LOG_SEGMENT_SIZE_MAX ((uint64_t)4 << 30)
#define LOG_SEGMENT_NAME_SIZE 32 /* with NUL */

struct log_segment_header {
    uint64_t broker_id;
    uint64_t generation;
    uint32_t epoch;
    uint32_t alignment;           /* blocks end at multiples of it */
    uint64_t start;               /* random number of the broker's start */
    uint64_t first_sequence;      /* of the first record in it */
    struct log_place predecessor; /* where the one before ends; generation 0: this is the first of all */
    uint64_t size;                /* of the file when it was prepared; information only */
    int64_t created_ns;           /* wall clock; information only */
    bool is_repair;               /* generations and sequences between the predecessor's end and this were given up */
};

/* Write LOG_SEGMENT_HEADER_SIZE bytes at `at`. Pure. */
void log_segment_header_encode(uint8_t *at, const struct log_segment_header *header);

/* Check and decode. Returns 0, ERR_CORRUPT (not a header), ERR_VERSION. Pure. */
must_check enum err log_segment_header_decode(struct log_segment_header *header_out, const uint8_t *at, size_t size);

/* `name_out` of LOG_SEGMENT_NAME_SIZE bytes. */
void log_segment_name(char *name_out, uint64_t generation);
/* The generation of a segment's file name, 0 when it is not one. */
uint64_t log_segment_name_parse(const char *name);
bool log_segment_name_is_spare(const char *name);

/* The generations in a directory, ascending; returned, to be freed. Also counts the spare files. */
must_check enum err log_segment_list(struct fs *fs, const char *dir, uint64_t **generations_out, size_t *count_out,
                                     size_t *spare_count_out);

/* Open segment `generation` for reading (direct) and check its header against its name.
 * Returns 0, ERR_NOTFOUND, ERR_CORRUPT (prepared for later, or damaged), ERR_VERSION, ERR_NOMEM, ERR_IO. file_out NULL on error. */
must_check enum err log_segment_open(struct file **file_out, struct log_segment_header *header_out, struct fs *fs, const char *dir,
                                     uint64_t generation);

/* The header of the first segment that is there and begun: those that are reused this moment or prepared are passed over. Returns 0,
 * ERR_NOTFOUND (there is none), ERR_VERSION, ERR_NOMEM, ERR_IO. */
must_check enum err log_segment_find_oldest(struct log_segment_header *header_out, struct fs *fs, const char *dir);

/* The header of the segment that follows `generation`: the one with the next generation, or a repair segment behind a range of generations
 * that was given up. Returns 0, ERR_NOTFOUND, ERR_CORRUPT (prepared for later, or damaged), ERR_VERSION, ERR_NOMEM, ERR_IO. */
must_check enum err log_segment_find_next(struct log_segment_header *header_out, struct fs *fs, const char *dir, uint64_t generation);

/* Does this block stand rightly in this segment at that offset? (Sequence and shard counts are the reader's to follow.) Pure. */
bool log_segment_holds(const struct log_segment_header *segment, const struct log_block_header *block, uint64_t offset);

#endif
