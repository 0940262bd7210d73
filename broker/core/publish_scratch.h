/* Working memory of a PUBLISH: who gets it, and its record; grown when needed and used again for each message. One for a shard. */
#ifndef TIDEGATE_BROKER_CORE_PUBLISH_SCRATCH_H
#define TIDEGATE_BROKER_CORE_PUBLISH_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/route/topic_tree.h"
#include "common/record.h"

/* Bytes that grow and are used again. */
struct publish_bytes {
    uint8_t *data;
    size_t size, capacity;
};

/* Room for `size` more; the caller adds what it used to bytes->size. NULL when memory is short. */
uint8_t *publish_bytes_reserve(struct publish_bytes *bytes, size_t size);

struct publish_scratch {
    struct match_list list;
    uint32_t *cells;      /* merge: hash of session -> first match + 1 */
    size_t cell_capacity; /* power of two */
    uint32_t *next_same;  /* merge: match -> next match of the same session + 1 */
    size_t next_capacity;
    struct publish_bytes now, held; /* recipients by when they get it */
    uint32_t now_count, held_count;
    uint32_t refused_count;                 /* copies for sessions that are full and refuse */
    bool is_refused;                        /* one of them is owed the message: the PUBLISH is refused */
    struct publish_bytes record_recipients; /* persistent ones as the record has them */
    struct publish_bytes properties;        /* forwardable ones of a packet that has more than a few */
    struct record record;                   /* of the message */
};

void publish_scratch_init(struct publish_scratch *scratch);
void publish_scratch_deinit(struct publish_scratch *scratch);

#endif
