/* The typed messages between the broker's actors, each listed once with its direction.
 *
 * Actors are the shards (one loop each), the route thread, the log thread, the store thread and the reader thread. Between two actors there
 * is one single-producer single-consumer ring in each direction, so ops keep their order per (sender, receiver) and no other order is
 * promised: whatever is correct only under a stronger order is wrong, and the simulator delays the rings to find it.
 *
 * An op is passed by value; pointers in it are *taken* by the receiver unless it says "shared (ref)". Pure: production runs ops over
 * common/ring.h, the simulator over its own queues. */
#ifndef TIDEGATE_BROKER_ACTOR_OPS_H
#define TIDEGATE_BROKER_ACTOR_OPS_H

#include <stdbool.h>
#include <stdint.h>

struct delivery;
struct log_block;
struct msg;
struct route_request;
struct store_read;
struct store_run;

/* Actor addresses: 0..shard_count-1 are shards. */
typedef uint16_t actor_id;
#define ACTOR_SHARDS_MAX 64
#define ACTOR_ROUTE 64
#define ACTOR_LOG 65
#define ACTOR_STORE 66
#define ACTOR_READER 67 /* reads the checkpoint */
#define ACTOR_COUNT 68

enum op_type {
    OP_NONE,
    OP_DELIVER,          /* publisher's shard -> session's home: a message and its recipients there                 */
    OP_ROUTE_REQUEST,    /* shard -> route: SUBSCRIBE, UNSUBSCRIBE, or all subscriptions of a session away          */
    OP_ROUTE_REPLY,      /* route -> shard: reason codes; the tree holds them now                                    */
    OP_ROUTE_RETAIN,     /* publisher's shard -> route: set or clear a retained value; `flag`, `count`: reserved for it (retained.h) */
    OP_ROUTE_RETAINED,   /* route -> publisher's shard: the value of that number is in (or superseded)              */
    OP_RETAINED_VALUE,   /* route -> session's home: one retained message for filter `count` of the request        */
    OP_RETAINED_END,     /* route -> session's home: no more for this request                                       */
    OP_ROUTE_ASK,        /* route -> shard: answer behind everything you have sent; `count` is the round                   */
    OP_ROUTE_PASS,       /* shard -> route: the answer: no OP_ROUTE_RETAIN with a number below `retain.hold` comes any more   */
    OP_RETAINED_MORE,    /* session's home -> route: `count` more values of a request may come                        */
    OP_LOG_BLOCK,        /* shard -> log: a sealed block, taken; comes back by OP_LOG_DURABLE                        */
    OP_LOG_DURABLE,      /* log -> shard: own blocks up to `durable_blocks` are durable; `blocks` returned           */
    OP_LOG_FAILED,       /* log -> shard: the log is failed for good; nothing is acknowledged from here on           */
    OP_LOG_ROOM,         /* log -> shard: the log takes PUBLISH records / does not                                  */
    OP_STORE_CHECKPOINT, /* store -> shards and route: everything below `checkpoint.sequence` can be read from the store           */
    OP_STORE_ROOM,       /* store -> shards: the checkpoint keeps up (`flag`) / PUBLISHes that need it must wait    */
    OP_STORE_RUN,        /* session's home -> store: these positions stand in a run from now on                     */
    OP_STORE_RUN_DROP,   /* session's home -> store: the run that begins at `run.first` is consumed                 */
    OP_STORE_PASSED,     /* shard -> store: retained numbers below `passed.number` are in own blocks up to `passed.block` */
    OP_STORE_EXPIRED,    /* route -> store: a retained value that the checkpoint has is none any more            */
    OP_STORE_READ,       /* session's home or route -> reader: find these messages                                  */
    OP_STORE_READ_DONE,  /* reader -> who asked: the same block, filled                                             */
};

/* A session as others know it: looked up at its home, where it may be gone. */
struct session_ref {
    uint64_t number;
    actor_id shard;
};

/* Positions that leave their home's memory: ascending, all below the checkpoint. */
#define STORE_RUN_MAX 32
struct store_run {
    uint32_t count;
    uint64_t sequences[STORE_RUN_MAX];
};

/* A retained value that has expired. One block. */
struct store_expired {
    uint64_t number;     /* of the value: a newer one of its topic stays */
    uint32_t topic_size; /* bytes */
    uint8_t topic[];
};

struct op {
    uint8_t type; /* enum op_type */
    bool flag;    /* see the members */
    actor_id from;
    uint32_t count;
    union {
        struct delivery *delivery;     /* OP_DELIVER */
        struct route_request *request; /* OP_ROUTE_REQUEST, and filled in OP_ROUTE_REPLY */
        struct {
            struct msg *msg; /* shared (ref); payload of 0 bytes clears; NULL: a number was drawn for nothing */
            uint64_t hold;   /* the shard's own ticket, comes back in OP_ROUTE_RETAINED */
        } retain;            /* OP_ROUTE_RETAIN, OP_ROUTE_RETAINED (msg NULL) */
        struct {
            struct msg *msg; /* shared (ref), NULL in OP_RETAINED_END */
            uint64_t request_id;
            struct session_ref session;
        } retained;              /* OP_RETAINED_VALUE, OP_RETAINED_END, OP_RETAINED_MORE */
        struct log_block *block; /* OP_LOG_BLOCK; `count`: connections that wait for it, at least 1 (runs of one session's records) */
        struct {
            uint64_t durable_blocks;  /* count of the shard's own blocks that are durable */
            uint64_t first_sequence;  /* of the newest of them */
            struct log_block *blocks; /* list of buffers given back */
        } durable;                    /* OP_LOG_DURABLE; OP_LOG_ROOM uses `flag` alone */
        struct {
            uint64_t sequence; /* exclusive */
            uint64_t runs;     /* of OP_STORE_RUN that came from this shard, so many, the oldest, can be read as well */
            uint64_t aged;     /* every message below it is older than max_queued_age; 0: none is known to be */
        } checkpoint;          /* OP_STORE_CHECKPOINT; OP_STORE_ROOM uses `flag` alone */
        struct {
            uint64_t session_number;
            struct store_run *run; /* OP_STORE_RUN: taken */
            uint64_t first;        /* OP_STORE_RUN_DROP */
        } run;
        struct store_expired *expired; /* OP_STORE_EXPIRED: taken */
        struct {
            uint64_t number;     /* retained */
            uint64_t block;      /* the shard's own count */
        } passed;                /* OP_STORE_PASSED */
        struct store_read *read; /* OP_STORE_READ: taken, OP_STORE_READ_DONE: given back */
    };
};

#endif
