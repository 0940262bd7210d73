/* The broker's memory after a stop: checkpoint and log are opened, brought together, and poured into the actors before they run.
 *
 *   recovery_open   format -> checkpoint's database -> log (which must reach back to the checkpoint, and not end before it) -> replay
 *                   of the log's end into the checkpoint, committed. From here on the checkpoint says all there is
 *   recovery_load   checkpoint -> sessions and what they want to their shards, subscriptions to the topic tree, retained values to the
 *                   route actor. One pass each; bodies are not read
 *
 * Nobody listens yet: a failure ends the start with a message that names file or key, and changes nothing that another start could not
 * find again. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_RECOVERY_H
#define TIDEGATE_BROKER_OPS_RECOVERY_H

#include "broker/actor/ops.h"
#include "broker/durable/checkpoint.h"
#include "broker/durable/kv.h"
#include "common/log_writer.h"

struct route_actor;
struct shard;
struct topic_tree;

struct recovery_options {
    struct fs *fs;
    const char *data_dir;
    /* Opens the database; separate, so that the simulator brings its own. */
    enum err (*open_kv)(void *arg, struct kv **kv_out, struct errmsg *msg);
    void *open_kv_arg;
    uint64_t delta_bytes_max;      /* of replay: commits in between */
    struct log_writer_options log; /* dir set; the checkpoint's places are filled in here */
    uint64_t random;               /* of a new database's topic hashes */
    int64_t queue_age_max_ns;      /* checkpoint_set_age_max() */
};

/* Closed by recovery_close(). */
struct durable {
    struct kv *kv;
    struct checkpoint *checkpoint;
    struct log_writer *writer;
    struct log_recovery log; /* what the log was found to be */
};

/* Returns 0 or the reason, with msg; what was opened is closed then. */
enum err recovery_open(struct durable *durable_out, struct recovery_options *options, struct errmsg *msg) must_check;
void recovery_close(struct durable *durable);
/* The broker's own time at a start, in which the deadlines on disk stand: that of the last commit, and what passed on the wall since then
 * (never less than nothing). Without a commit that knew it, the wall clock. Pure. */
int64_t recovery_steady_ns(const struct checkpoint_state *state, int64_t now_wall_ns);

/* Checkpoint and log must be of one broker; each alone is only half of the truth. They are when the ids agree, or the checkpoint's is that
 * of the segment in which it stands: a restored directory has a new id and keeps its segments (LOG 20); what a repair cut away cannot be
 * asked any more. log_broker_id: of the identity. Returns 0, ERR_CORRUPT, ERR_IO. */
enum err recovery_match(const struct checkpoint_state *state, uint64_t log_broker_id, struct fs *fs, const char *data_dir,
                        const char *log_dir, struct errmsg *msg) must_check;

struct recovery_target {
    struct shard **shards; /* in no turn, never run */
    uint16_t shard_count;
    uint64_t hash_key; /* which finds a client's home (shard_config.hash_key) */
    struct topic_tree *tree;
    struct route_actor *route;
    int64_t now_mono_ns, now_wall_ns;
    int64_t now_steady_ns; /* as the shards have it: now_mono_ns and shard_config.steady_offset_ns */
};

struct recovery_loaded {
    uint64_t sessions, subscriptions, messages, retained, corrupt;
    uint64_t retained_number_max; /* the process-wide counter begins above it */
};

enum err recovery_load(struct recovery_loaded *loaded_out, struct durable *durable, const struct recovery_target *target,
                       struct errmsg *msg) must_check;

#endif
