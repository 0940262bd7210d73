/* One write transaction of the checkpoint: begun, and values put and counted. Internal to the checkpoint; checkpoint_message.c,
 * checkpoint_commit.c and checkpoint_load.c write with it. Owner: the store thread. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_WRITE_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_WRITE_H

#include "broker/durable/kv.h"

struct checkpoint;

/* One write transaction. */
struct checkpoint_write {
    struct checkpoint *checkpoint;
    struct kv_txn *txn;
    bool has_holders;                  /* HOLDERS had entries when it began: otherwise none needs to be looked for */
    uint64_t bytes;                    /* put */
    uint64_t bodies_put, bodies_freed; /* freed: nobody holds them any more */
};

enum err checkpoint_write_begin(struct checkpoint_write *write_out, struct checkpoint *checkpoint) must_check;
enum err checkpoint_write_put(struct checkpoint_write *write, enum kv_tree tree, struct span key, struct span value) must_check;
/* How many chunks, and the retained value, hold the body; 0 and 1 are not written down. */
enum err checkpoint_write_holders(struct checkpoint_write *write, uint64_t sequence, uint32_t count) must_check;

#endif
