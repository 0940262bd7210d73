/* Messages that wait for one session, oldest first: in memory as messages, or on disk and remembered by their sequence.
 *
 *   head -> front -> runs -> tail -> window
 *
 *   head    read back from the store, ready to be sent                     messages
 *   front   read back once and let go again, because the client left      sequences
 *   runs    sequences that are on disk as well                             a count, and the key of the next run to read; of those that
 *                                                                         are posted and not committed the sequences, too
 *   tail    the newest whose messages are on disk                          sequences, a byte or two each
 *   window  the newest whose messages must stay in memory                  messages: above the checkpoint, or with no copy on disk
 *
 * What comes goes to the window's end. queue_settle() lets go what is below the checkpoint; queue_take_run() cuts the tail. What can be
 * sent next is queue_first(): the head, or the window when nothing is between; queue_next_read() says what must be read before.
 *
 * Messages come in the order of their sequences from each shard, but not from all of them. Runs of one session never overlap, their keys
 * (first sequences) ascend, and they are above all that is sent before them: head, front, in flight. A position that came too late for that
 * is not put into one. It is kept aside, and goes to the front before the first run with a greater key is: what came before it from its
 * shard stands in runs with smaller keys, what came after it behind. So at start each position can be told its place: what is in no run
 * goes before the runs, aside, or behind them.
 *
 * Nothing waits for a commit. What is below the checkpoint can be read by its sequence at once, so a client that takes its messages as fast
 * as they can be read gets to the window, and from there to what is sent on as it comes, whatever the checkpoint does meanwhile. But a run
 * is found only when the commit behind its posting is done. If that were waited for, a client that came back into a flow would never catch
 * up: what came during the wait stood in the tail, became a run of its own with the commit, and was waited for again. So
 *   - the sequences of posted runs stay in memory until the store says that it has committed them (queue_shared.runs_committed: it counts
 *     them for each shard, so that it is exact also when they came while a commit was under way). Until then a run is read by them, whole,
 *     and consumed like one that was found. They are the newest runs: committed ones are read before, from the store. What they take is a
 *     byte or two for each message of which the message itself was in memory until then. What comes after the next checkpoint is not cut
 *     before they are committed, so that it is never more than what came in two intervals.
 *   - for a client that is there the tail may grow to QUEUE_NEAR_MAX: it will be read soon, and is not written down to be read back. One
 *     that stays behind for hours has more than that: all below the checkpoint becomes runs, as if it was away. And when it leaves: the
 *     next queue_settle() and queue_take_run() cut what is longer than a tail of one that is away.
 * A crash finds a posted run or not, consumed or not: the wants decide what is still to be sent (durable/checkpoint.h), and what is wanted
 * and in no run has its place as above. Only where memory is short (posted_add) are posted runs waited for: not found, the next one is
 * asked for again with the next checkpoint (is_run_late).
 *
 * A session that is away costs struct queue, the body (48 bytes) and the tail's list (64 bytes), however long its queue, whatever came at
 * once and however far apart. One that came back and left while it was reading has a front besides, others what came too late for the runs,
 * and waits for them to be read: then all of it is packed into one block (queue_pack), as is that of one with more in flight; some 45
 * bytes, and two or three for each in front or late. For the time of a commit posted runs come to that. Nothing is allocated while it is
 * empty and never had runs. Counts and bytes cover all parts; the bounds are the caller's, with queue_judge(). Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_H
#define TIDEGATE_BROKER_SESSION_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "broker/actor/store_read.h"
#include "broker/session/queue_item.h"
#include "common/metrics.h"

#define QUEUE_HEAD_MAX STORE_READ_MAX /* messages read ahead; a run may bring as many beyond half of it */
#define QUEUE_TAIL_MAX 13             /* sequences in memory, or QUEUE_TAIL_SIZE_MAX; at one more the oldest become a run, */
#define QUEUE_RUN 12                  /* so many; where many came at once, up to STORE_RUN_MAX */
#define QUEUE_TAIL_SIZE_MAX 39        /* bytes of theirs: with another of 5 the list takes 64, one size class of the allocator */
#define QUEUE_NEAR_MAX 1024           /* with so many a client that is there nearly follows: they stay in the tail */
#define QUEUE_RUN_MISSES_MAX 100      /* checkpoints in a row without the run that must be there: it is given up, counted */

/* What to do when a message finds the session's queue at its bound. */
enum queue_policy {
    QUEUE_DROP_NEWEST,
    QUEUE_DROP_OLDEST, /* also when it is on disk; until the store has said what it costs, twice the bound may be there */
    QUEUE_REFUSE,      /* publishers are refused; what was on its way may go over it */
};
#define QUEUE_OVERSHOOT_MAX 64 /* messages that may go over it; in bytes no more than the bound itself */

_Static_assert(QUEUE_RUN <= STORE_RUN_MAX && QUEUE_RUN <= QUEUE_TAIL_MAX, "a run is cut from the tail");

struct queue_limits {
    uint32_t messages_max;
    uint64_t bytes_max;
};

/* What the queues of a shard have in common. */
struct queue_shared {
    uint64_t checkpoint;        /* every sequence below it can be read from the store; 0 = none */
    uint64_t runs_posted;       /* by queue_take_run(), of all sessions */
    uint64_t runs_before;       /* of them: when the checkpoint moved last */
    uint64_t runs_committed;    /* so many of them, the oldest, can be read */
    struct queue_stats *window; /* messages in memory, with bytes; `oldest_ns` is not theirs to know */
    int64_t now_ns;             /* mono */
};

struct queue_body;
struct queue_packed;

/* Zero-initialised is empty. */
struct queue {
    union {
        struct queue_body *body;     /* NULL = nothing in it */
        struct queue_packed *packed; /* is_packed */
    };
    uint64_t bytes;       /* of all parts */
    uint32_t count;       /* of all parts, what is being read included */
    bool is_reading : 1;  /* a request for this session (queue or inflight) is at the reader */
    bool is_listed : 1;   /* the shard looks at it when the checkpoint moves */
    bool is_full : 1;     /* publishers are refused */
    bool is_run_late : 1; /* the next run was not found; the next checkpoint clears it */
    bool is_stuck : 1;    /* the shard tries again when the log has room for the record that the next message needs */
    bool is_packed : 1;   /* opened when something is to be done with it */
    bool is_old_over : 1; /* what is before the window has to go, though it may be small: newer ones went */
};

_Static_assert(sizeof(struct queue) <= 24, "in every session");

/* How much all queues together are over their bounds with a message more. With QUEUE_DROP_OLDEST its session pays it with its own oldest;
 * what has to be looked up for that may take a while, so it is not counted there from the beginning. */
struct queue_debt {
    uint32_t messages;
    uint64_t bytes;
};

enum queue_verdict { QUEUE_HAS_ROOM, QUEUE_FULL_MESSAGES, QUEUE_FULL_BYTES };

static inline uint32_t queue_count(const struct queue *queue) { return queue->count; }

/* Drops what is in memory. shared: NULL when nobody counts any more. */
void queue_deinit(struct queue *queue, struct queue_shared *shared);
/* Whether one more of `cost` bytes fits; cost 0: whether it is within its bounds now. */
enum queue_verdict queue_judge(const struct queue *queue, size_t cost, const struct queue_limits *limits);
/* Whether it may go over the bounds by one more of `cost` bytes. */
bool queue_may_overshoot(const struct queue *queue, size_t cost, const struct queue_limits *limits);
/* To the window's end; the reference is taken. False when memory is short: not taken. */
bool queue_push(struct queue *queue, struct queue_shared *shared, const struct queue_item *item);
/* The oldest item if it is in memory, NULL when the queue is empty or it must be read first. Borrowed until the next change. */
struct queue_item *queue_first(struct queue *queue);
/* Take queue_first() out; its reference is the caller's. */
struct queue_item queue_pop(struct queue *queue, struct queue_shared *shared);
/* What it holds, without what it owes: that is what counts in the bounds of all queues together. */
struct queue_limits queue_held(const struct queue *queue);
/* After each queue_push() and queue_restore(): what that message (of `cost` bytes, the newest) owes, no more than it held. It stays owed
 * until as much has left, or was dropped by queue_pop_over() and queue_on_costs() with the bounds that queue_bounds() says. False: memory
 * is short; never behind queue_push(). */
bool queue_owe(struct queue *queue, size_t cost, struct queue_debt debt);
/* These, or less while it owes. */
struct queue_limits queue_bounds(const struct queue *queue, const struct queue_limits *limits);
/* QUEUE_DROP_OLDEST: take the next out that has to go, and say by which bound; likewise. That is the oldest; and when it must be read first
 * the oldest of the window, as long as the window alone is over the bounds: nothing before the window is among the newest then. False: it
 * is within its bounds (*verdict_out is QUEUE_HAS_ROOM), or what goes next must be read. */
bool queue_pop_over(struct queue *queue, struct queue_shared *shared, const struct queue_limits *limits, struct queue_item *item_out,
                    enum queue_verdict *verdict_out);
/* How many of the oldest have to go, as far as can be said before their costs are known: at least 1, if any has to. */
uint32_t queue_over(const struct queue *queue, const struct queue_limits *limits);

/* Let go what is below the checkpoint: the window's to the tail, and of a client that is away the head's to the front. Of a window of many
 * queue_take_run() takes the most, without a list in between. Returns whether something is left that it or a later checkpoint lets go. */
bool queue_settle(struct queue *queue, struct queue_shared *shared, bool is_online);
/* The client is away: take as little memory as can be, if nothing is in memory but sequences. */
void queue_pack(struct queue *queue);
/* Whether there is more to pack than runs and a tail. */
bool queue_is_scattered(const struct queue *queue);
/* A sequence below which nothing is that must be read first; 0 when nothing must. */
uint64_t queue_oldest_unread(const struct queue *queue);
/* Whether there are runs to be read. */
bool queue_has_runs(const struct queue *queue);
/* Whether runs are to be cut now: not while some are not committed that were posted before the checkpoint moved, nor for a client that is
 * there and nearly follows. */
bool queue_may_cut(const struct queue *queue, const struct queue_shared *shared, bool is_online);
bool queue_has_posted(const struct queue *queue);
/* The store has committed `runs_committed`: give back what that makes needless. Returns whether some are left that it did not. */
bool queue_forget_posted(struct queue *queue, const struct queue_shared *shared);
/* Cut the tail, and a window of which queue_settle() left much for this: fill a run (ascending) that the caller posts, in this order.
 * inflight_max: the greatest sequence that is in flight. False: it is short enough, or cannot be cut now. After some true, queue_settle()
 * once more. */
bool queue_is_tail_long(const struct queue *queue);
bool queue_has_run(const struct queue *queue, const struct queue_shared *shared, bool and_window);
bool queue_take_run(struct queue *queue, struct queue_shared *shared, bool and_window, uint64_t inflight_max, struct store_run *run_out);
/* Whether queue_next_read() would say yes: something is to be read, nothing is under way, and the head is at most half full. */
bool queue_must_read(const struct queue *queue);
/* The next request: kind, run, count, items' sequences are set, at most `max` (1..STORE_READ_MAX; a run comes whole). False: nothing to
 * read, the head has enough, a request is under way, or memory is short. Sets is_reading. */
bool queue_next_read(struct queue *queue, struct store_read *read, uint32_t max);
/* The answer; what is KNOWN was never counted here, and stays out; messages that are found go to the head (their reference is taken, msg
 * NULL in the item), those not looked at to the front's beginning; gone and damaged ones leave the queue. metas: of the items found.
 * Returns the key of a run that is consumed now (the caller posts OP_STORE_RUN_DROP), 0 = none. *lost_out: messages of runs that were given
 * up. Clears is_reading. */
uint64_t queue_on_read(struct queue *queue, struct queue_shared *shared, struct store_read *read, const uint32_t *metas,
                       uint32_t *lost_out);
/* The answer to one for costs alone: as many of the oldest as are over the bounds leave, their state says by which; what is found besides
 * goes to the front's beginning. */
uint64_t queue_on_costs(struct queue *queue, struct queue_shared *shared, struct store_read *read, const struct queue_limits *limits,
                        uint32_t *lost_out);

/* Every sequence that is in no run and not in a request under way: wanted messages in memory too. */
typedef void (*queue_position_fn)(void *arg, uint64_t sequence);
void queue_each_position(const struct queue *queue, queue_position_fn visit, void *arg);

/* At start, ascending by sequence: a message that the session wants. is_in_run: a run in the store has it; run_last: the end of the last
 * run (0 = none). Then queue_take_run() until false. False: memory is short. */
bool queue_restore(struct queue *queue, uint64_t sequence, uint32_t cost, bool is_in_run, uint64_t run_last);

#endif
