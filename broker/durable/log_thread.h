/* The log thread: takes sealed blocks from all shards, writes them with one write, and tells each shard what is durable.
 *
 * When to write (adaptive commit): a lone client never waits, because a write starts as soon as the last returned and something is there.
 * While two or more connections wait, write starts are spaced by `commit_spacing`, and what waits is collected after the pause, not before:
 * at moderate load the wake-ups cost more than the messages, so sharing a write, a wake-up and a send matters more than anything else.
 * Under heavy load the spacing is stretched with the rate of records, up to ten times.
 *
 * Room: shards are told when the log takes no more PUBLISH records and when it does again. A failed write is final: shards are told,
 * nothing is acknowledged from then on, and `on_failed` ends the process with an error. A full disk is not a failure: the write is tried
 * again until there is space.
 *
 * The thread raises its own priority when it is permitted to: on a busy core it would otherwise wake milliseconds late. Owner of the
 * log_writer's begin, write, finish, idle. Stops when asked, after writing what its rings hold. */
#ifndef TIDEGATE_BROKER_DURABLE_LOG_THREAD_H
#define TIDEGATE_BROKER_DURABLE_LOG_THREAD_H

#include "broker/actor/exchange.h"
#include "common/histogram.h"
#include "common/log_writer.h"

struct log_thread;

struct log_thread_config {
    uint16_t shard_count;
    int64_t commit_spacing_ns;    /* least time between two starts while two or more connections wait */
    uint64_t room_margin;         /* log_room_margin() */
    void (*on_failed)(void *arg); /* called once, on the log thread */
    void *on_failed_arg;
};

/* Cells: the log thread. */
struct log_thread_stats {
    struct histogram commit_ns;   /* one write, from its start to the durable end */
    struct histogram wait_ns;     /* from finding a block in the ring to its being durable */
    struct histogram batch;       /* blocks a write */
    struct queue_stats pending;   /* blocks taken from the rings and not yet durable */
    struct counter spaced;        /* writes that were held back for company */
    struct counter no_space;      /* writes that found no space and were tried again */
    struct gauge has_room;        /* 1: takes PUBLISH records */
    struct gauge failed;          /* 1: failed for good */
    struct gauge waits_for_space; /* 1: a write waits until the disk has space */
    struct gauge raised;          /* 1: the priority could be raised */
};

/* Returns 0 or ERR_NOMEM. Thread: main. */
enum err log_thread_start(struct log_thread **thread_out, struct exchange *exchange, struct log_writer *writer,
                          const struct log_thread_config *config) must_check;
/* After all shards have stopped. NULL is fine. */
void log_thread_stop(struct log_thread *thread);
const struct log_thread_stats *log_thread_get_stats(const struct log_thread *thread);

#endif
