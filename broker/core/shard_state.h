/* The inside of a shard: what each of the files that make it up keeps, and what they all use. Only they include it.
 *
 * They stand in layers above it, each calling only those below; docs/ARCHITECTURE.md has the picture. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_STATE_H
#define TIDEGATE_BROKER_CORE_SHARD_STATE_H

#include "broker/actor/op_backlog.h"
#include "broker/actor/ops.h"
#include "broker/core/ack_gate.h"
#include "broker/core/publish_scratch.h"
#include "broker/core/shard_config.h"
#include "broker/core/shard_stats.h"
#include "broker/route/topic_tree.h"
#include "broker/session/outbox.h"
#include "broker/session/session_table.h"
#include "broker/session/timer_wheel.h"
#include "common/list.h"
#include "common/log_block.h"

#define SHARD_RESTORED_PER_TURN 256   /* sessions logged as away after a start */
#define SHARD_TIMERS_PER_TURN 1024    /* fired or moved; the rest in the next turn */
#define SHARD_RELEASES_PER_TURN 8192  /* gate items; the rest in the next turn */
#define SHARD_IOVECS_MAX 64           /* pieces of one vectored write; further ones follow in the same turn */
#define SHARD_RETRY_NS 10000000       /* 10 ms: what waits for a full ring is tried again */
#define SHARD_ROOM_RETRY_NS 100000000 /* 100 ms: blocked clients try again though nobody said that there is room */
#define SHARD_CLOSE_LINGER_MS 1000    /* for the last bytes (DISCONNECT, CONNACK) to leave */

struct late_item;
struct owed_item;
struct publish_job;

/* core/shard_log.h */
struct shard_log {
    struct log_block_pool *pool; /* NULL without persistence */
    struct log_block *block;     /* being filled, NULL = none */
    uint64_t durable_blocks;
    bool has_room; /* the log takes PUBLISH records */
    bool is_failed;
    uint64_t session_last;     /* of the newest record in `block` */
    uint32_t connection_count; /* runs of one session's records in `block`: 1 = one client waits alone for its commit */
    uint32_t ack_at, ack_end;  /* place in the body of `block` of the newest ACK that may grow; ack_end 0: none */
    uint64_t ack_last;         /* what it names last */
    struct publish_job *large; /* being logged, NULL = none */
    uint8_t *large_head;
    struct log_block_group group;
};

/* core/session_log.h. Zero-initialised is empty. */
struct session_log {
    struct late_item *first, *last;
    uint64_t end_block; /* own block that last said of some session that it has ended; 0 = there was none */
};

struct number_list {
    uint64_t *numbers;
    uint32_t count, capacity;
};

/* core/waiting.h */
struct waiting {
    struct queue_shared shared;
    uint64_t restored_last;                /* the newest message that an earlier start left; 0 = none */
    struct number_list listed;             /* sessions that hold messages for the checkpoint (queue.is_listed); gone ones are passed over */
    struct number_list stuck;              /* sessions whose next message needs a record for which there was no room */
    uint32_t walk_at, walk_keep, walk_end; /* the round: [0, keep) stay, [at, end) are to be looked at */
    uint64_t walk_checkpoint;              /* the round's; 0 = none under way */
    struct waiting_age {
        uint64_t sequence; /* every message below it is over max_queued_age */
        int64_t next_ns;   /* mono: of the next look at all sessions */
        uint32_t at;       /* bucket of the session table; 0 = no look is under way */
        uint32_t reads;    /* under way for its sake */
    } age;
    struct waiting_drop {
        uint64_t session, sequence;
        uint8_t reason; /* enum shard_drop */
    } * drops;
    uint32_t drop_count, drop_capacity;
};

/* core/scan.h */
struct scans {
    struct list_node waiting; /* of pending_request.waiting: values are to be asked for when there is room to park them */
    uint64_t coming;          /* values that were asked for and have not come; of sessions that are logged */
};

/* core/owed.h */
struct owed {
    struct owed_item *first, *last; /* what is parked, of all sessions, in order */
};

/* Why a connection is to be closed. */
struct client_over {
    enum mqtt_reason reason; /* SUCCESS: nothing is said */
    struct counter *cell;
};

struct shard {
    struct shard_config config;
    struct topic_tree *tree;
    struct epoch_reader *reader;
    const struct shard_io *io;
    void *io_arg;

    int64_t now_mono_ns, now_wall_ns, now_ms; /* of this turn; now_ms is mono */
    int64_t now_steady_ns;                    /* the broker's own time: what deadlines are compared with */
    int64_t receive_wall_ns;                  /* given last: strictly increasing */
    uint32_t turn;
    bool in_turn;

    struct timer_wheel client_timers, session_timers;
    struct session_table sessions;
    struct ack_gate gate;
    struct op_backlog backlog;
    struct outbox_pool outboxes;
    struct shard_log log;
    struct session_log session_log;
    uint64_t *restored; /* numbers of sessions that were connected when the broker stopped: still to be logged as away */
    uint32_t restored_count, restored_capacity;
    int64_t next_will_ns;      /* of an earlier start: when the next one may be said */
    int64_t restored_wills_ms; /* mono; before it none of those whose clients were connected when the broker stopped */
    struct waiting waiting;
    struct scans scans;
    struct owed owed;
    struct publish_scratch scratch;
    struct delivery *batches[ACTOR_SHARDS_MAX]; /* to be posted at the end of the turn */

    struct list_node connecting, ready, blocked; /* of clients, by client.work */
    struct list_node idle;                       /* the same: connected, and neither ready nor waiting for room */
    struct list_node dirty;                      /* of clients, by client.dirty */
    struct client_over over;                     /* of the packet that ended its connection last */
    bool is_any_doomed;
    bool is_work_left; /* a budget ended something: the next turn is due at once */
    bool is_room_news; /* something happened that may have made room: blocked clients try again. With a full log they may be thousands. */
    int64_t room_tried_ns;

    uint64_t retained_asked;               /* own retained PUBLISHes posted; answers come in order */
    uint64_t request_id;                   /* of route requests */
    uint64_t session_counter;              /* of the newest session's number; 0 before the first */
    struct will *wills_first, *wills_last; /* that found no room */
    uint64_t random_state[2];
    uint64_t correlation_base, correlation_count;
    bool wants_user_name; /* some rule takes the device from it */
    bool is_draining;
    bool is_restoring;      /* not all subscriptions of the earlier start are in the tree yet */
    bool has_store_room;    /* the checkpoint keeps up: PUBLISHes that it needs may be logged (LOG 15) */
    uint64_t passed_number; /* OP_STORE_PASSED that waits for the large record on its way; 0 = none */

    struct shard_stats stats;
};

/* An op to another actor; kept when its ring is full. */
void shard_post(struct shard *shard, actor_id to, const struct op *op);
/* What was kept, again. Whether some of it went. */
bool shard_post_backlog(struct shard *shard);
uint64_t shard_random(struct shard *shard);
void shard_correlation_id(struct shard *shard, uint8_t id_out[RECORD_CORRELATION_SIZE]);
/* Of a new session; never given before. */
uint64_t shard_draw_session_number(struct shard *shard);
/* A receive time: the turn's wall clock, moved on so that it is strictly increasing. */
int64_t shard_receive_time(struct shard *shard);
/* Whether a PUBLISH (of QoS > 0) may be handled at all now. */
bool shard_has_room(const struct shard *shard);

#endif
