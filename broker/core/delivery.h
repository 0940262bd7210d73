/* The way of a message to the homes of its recipients: at once where that is this shard, else in a batch (struct delivery), one a turn and
 * shard. At home: core/owed.h for whom retained values are on their way, else core/deliver.h. Owner: the shard; a delivery: whoever holds
 * it. Pure. */
#ifndef TIDEGATE_BROKER_CORE_DELIVERY_H
#define TIDEGATE_BROKER_CORE_DELIVERY_H

#include <stdint.h>

#include "common/bytes.h"

#define DELIVERY_SIZE_FIRST 2048  /* bytes of a batch; doubled when needed */
#define DELIVERY_SIZE_POST 65536u /* bytes from which a batch is posted before the turn ends */

struct msg;
struct shard;

/* A message in a batch, its recipients behind it. */
struct delivery_entry {
    struct msg *msg; /* shared (ref) */
    uint32_t count;  /* recipients */
    uint32_t size;   /* bytes of the recipients */
};

/* A batch for another shard. One block. */
struct delivery {
    uint32_t size, capacity; /* bytes */
    uint32_t copies;
    uint32_t last_entry; /* offset */
    _Alignas(8) uint8_t bytes[];
};

/* Drop it with its references; for whoever tears rings down. */
void delivery_free(struct delivery *delivery);

/* Give a message to recipients wherever they are at home: own ones at once, others into batches. */
void delivery_give(struct shard *shard, struct msg *msg, struct span recipients);
/* A batch from another shard; taken. */
void delivery_on_batch(struct shard *shard, struct delivery *delivery);
/* Hand over the batches of this turn. */
void delivery_post_batches(struct shard *shard);

#endif
