/* The delta into the database, in one transaction: ended wants, retained values, messages with their chunks, sessions, runs, bodies that
 * nobody holds any more, and the position. Everything is written in the order of its keys, so a commit touches few pages. Nothing in the
 * checkpoint changes before the transaction is durable: after a failure for space the same is done again, but for removals, which go ahead
 * alone. What it does about messages is in checkpoint_message.c. */
#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/checkpoint_write.h"

#include "common/check.h"

#include <stdlib.h>

/* --- retained ------------------------------------------------------------------------------------------------------------------------ */

static enum err write_retained_value(struct checkpoint_write *write, const struct delta_retained *retained)
{
    struct buf *buf = &write->checkpoint->scratch;
    uint8_t head[CHECKPOINT_RETAINED_HEAD] = {0}, key[16];
    store_le64(head, retained->number);
    store_le64(head + 8, retained->sequence);
    store_le64(head + 16, retained->sequence ? (uint64_t)retained->expiry_ns : 0);
    store_le32(head + 24, retained->sequence ? retained->content_bytes : 0);
    buf_clear(buf);
    buf_put(buf, head, sizeof head);
    buf_put_span(buf, retained->topic);
    if (buf->err)
        return buf->err;
    return checkpoint_write_put(write, KV_RETAINED, checkpoint_retained_key(key, retained->at), buf_span(buf));
}

static enum err write_retained_change(struct checkpoint_write *write, struct delta_retained *retained)
{
    struct checkpoint *checkpoint = write->checkpoint;
    bool is_forgotten = retained->sequence == 0 && retained->number < checkpoint->forget_below;
    uint8_t key[16];
    enum err err = ERR_OK;
    if (!retained->is_stored && is_forgotten)
        return ERR_OK;
    if (!retained->is_stored) {
        struct checkpoint_retained other;
        struct counter ignored = {0};
        err = checkpoint_find_retained(write->txn, &other, &retained->at, retained->hash, retained->topic, &ignored);
        err = err == ERR_NOTFOUND ? ERR_OK : err == ERR_FULL ? ERR_CORRUPT : err;
    }
    if (!err)
        err = is_forgotten ? kv_del(write->txn, KV_RETAINED, checkpoint_retained_key(key, retained->at))
                           : write_retained_value(write, retained);
    if (!err && retained->stored_sequence != 0)
        err = checkpoint_write_release(write, retained->stored_sequence);
    return err;
}

static enum err write_retained(struct checkpoint_write *write, struct checkpoint_state *state)
{
    const struct delta *delta = &write->checkpoint->delta;
    for (size_t b = 0; b < delta->retained_bucket_count; b++) {
        for (struct delta_retained *retained = delta->retained_buckets[b]; retained; retained = retained->next) {
            if (!retained->is_changed)
                continue;
            enum err err = write_retained_change(write, retained);
            if (err)
                return err;
            state->retained_count += (retained->sequence != 0) - (uint64_t)(retained->stored_sequence != 0);
        }
    }
    return ERR_OK;
}

/* Removals that need not be remembered, unless something came in their place. */
static enum err write_forgotten(struct checkpoint_write *write)
{
    const struct checkpoint *checkpoint = write->checkpoint;
    for (size_t i = 0; i < checkpoint->removal_count; i++) {
        const struct checkpoint_removal *removal = &checkpoint->removals[i];
        if (removal->number >= checkpoint->forget_below)
            continue;
        uint8_t key[16];
        struct span value;
        struct checkpoint_retained retained;
        enum err err = kv_get(write->txn, KV_RETAINED, checkpoint_retained_key(key, removal->at), &value);
        if (!err)
            err = checkpoint_retained_decode(&retained, value);
        if (!err && retained.sequence == 0 && retained.number == removal->number)
            err = kv_del(write->txn, KV_RETAINED, checkpoint_retained_key(key, removal->at));
        if (err && err != ERR_NOTFOUND && err != ERR_CORRUPT)
            return err;
    }
    return ERR_OK;
}

/* --- sessions, runs ------------------------------------------------------------------------------------------------------------------ */

static enum err write_session(struct checkpoint_write *write, const struct stored_session *session, struct checkpoint_state *state)
{
    uint8_t key[8];
    kv_key_u64(key, session->number);
    if (!session->exists) {
        state->session_count -= session->is_deleted && session->is_stored;
        return session->is_deleted && session->is_stored ? kv_del(write->txn, KV_SESSIONS, span_of(key, 8)) : ERR_OK;
    }
    struct buf *buf = &write->checkpoint->scratch;
    buf_clear(buf);
    stored_session_encode(session, buf);
    if (buf->err)
        return buf->err;
    struct span before;
    enum err err = session->is_stored ? kv_get(write->txn, KV_SESSIONS, span_of(key, 8), &before) : ERR_NOTFOUND;
    if (!err && span_equal(before, buf_span(buf)))
        return ERR_OK;
    if (err && err != ERR_NOTFOUND && err != ERR_CORRUPT)
        return err;
    state->session_count += !session->is_stored;
    return checkpoint_write_put(write, KV_SESSIONS, span_of(key, 8), buf_span(buf));
}

static enum err write_sessions(struct checkpoint_write *write, struct stored_session **sessions, struct checkpoint_state *state)
{
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < write->checkpoint->delta.session_count; i++)
        if (sessions[i]->is_changed)
            err = write_session(write, sessions[i], state);
    return err;
}

static enum err write_runs(struct checkpoint_write *write)
{
    const struct delta *delta = &write->checkpoint->delta;
    uint8_t bytes[16];
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < delta->run_count; i++) {
        const struct delta_run *run = &delta->runs[i];
        struct span key = kv_key_u64_u64(bytes, run->session, run->first);
        err = run->positions.size ? checkpoint_write_put(write, KV_RUNS, key, run->positions) : kv_del(write->txn, KV_RUNS, key);
    }
    return err;
}

/* --- sessions that ended ------------------------------------------------------------------------------------------------------------- */

struct job_acks {
    struct delta_ack *items;
    size_t count, capacity;
};

/* The run at the session's beginning: taken out, its positions into acks. ERR_NOTFOUND: there is none. A damaged one goes, too: what it
 * named is found by the next load. */
static enum err take_run(struct checkpoint_write *write, uint64_t session, struct job_acks *acks)
{
    uint8_t bytes[16];
    struct span key, value;
    uint64_t sequences[CHECKPOINT_RUN];
    uint32_t count = 0;
    enum err err = kv_seek(write->txn, KV_RUNS, kv_key_u64_u64(bytes, session, 0), &key, &value);
    if (err && !(err == ERR_CORRUPT && key.size > 0))
        return err;
    if (key.size != 16 || kv_key_read_u64(key.data) != session)
        return ERR_NOTFOUND;
    memcpy(bytes, key.data, sizeof bytes);
    if (err || checkpoint_run_decode(sequences, &count, kv_key_read_u64(bytes + 8), value) != ERR_OK)
        counter_inc(&write->checkpoint->stats.corrupt);
    for (uint32_t i = 0; i < count; i++) {
        err = delta_grow((void **)&acks->items, &acks->capacity, acks->count, sizeof *acks->items);
        if (err)
            return err;
        acks->items[acks->count++] = (struct delta_ack){sequences[i], session};
    }
    return kv_del(write->txn, KV_RUNS, span_of(bytes, 16));
}

/* A commit's share of the runs of sessions that ended. *done_out: so many jobs, the oldest, are finished by it. */
static enum err write_jobs(struct checkpoint_write *write, size_t *done_out)
{
    const struct checkpoint *checkpoint = write->checkpoint;
    struct job_acks acks = {0};
    enum err err = ERR_OK;
    for (*done_out = 0; !err && *done_out < checkpoint->job_count; ++*done_out) {
        while (!err && acks.count < CHECKPOINT_JOB_WANTS)
            err = take_run(write, checkpoint->jobs[*done_out], &acks);
        if (err != ERR_NOTFOUND)
            break;
        err = ERR_OK;
    }
    if (!err)
        err = checkpoint_write_acks(write, acks.items, acks.count);
    free(acks.items);
    return err;
}

/* --- commit -------------------------------------------------------------------------------------------------------------------------- */

enum err checkpoint_write_meta(struct checkpoint_write *write, struct checkpoint_state *state)
{
    uint64_t bodies = state->body_count + write->bodies_put;
    state->body_count = bodies > write->bodies_freed ? bodies - write->bodies_freed : 0;
    uint8_t value[CHECKPOINT_STATE_SIZE], format[CHECKPOINT_FORMAT_SIZE] = {0};
    checkpoint_state_encode(value, state);
    enum err err = checkpoint_write_put(write, KV_META, CHECKPOINT_KEY_STATE, span_of(value, sizeof value));
    if (!err && write->checkpoint->age_max_ns > 0) {
        uint8_t ages[AGE_MARKS_SIZE_MAX];
        size_t size = age_marks_encode(ages, &write->checkpoint->ages);
        err = checkpoint_write_put(write, KV_META, CHECKPOINT_KEY_AGES, span_of(ages, size));
    }
    if (err || !write->checkpoint->is_new)
        return err;
    store_le32(format, CHECKPOINT_FORMAT);
    store_le64(format + 8, write->checkpoint->random);
    return checkpoint_write_put(write, KV_META, CHECKPOINT_KEY_FORMAT, span_of(format, sizeof format));
}

/* Ended sessions become jobs before anything is written: their work may begin with this commit. Room is made for everything that the
 * success will have to note, which therefore cannot fail. */
static enum err prepare(struct checkpoint *checkpoint, struct stored_session **sessions, size_t *job_count_out)
{
    size_t removals = 0;
    enum err err = ERR_OK;
    *job_count_out = checkpoint->job_count;
    for (size_t i = 0; !err && i < checkpoint->delta.session_count; i++) {
        if (!sessions[i]->is_deleted)
            continue;
        err = delta_grow((void **)&checkpoint->jobs, &checkpoint->job_capacity, checkpoint->job_count, sizeof *checkpoint->jobs);
        if (!err)
            checkpoint->jobs[checkpoint->job_count++] = sessions[i]->number;
    }
    for (size_t b = 0; b < checkpoint->delta.retained_bucket_count; b++)
        for (const struct delta_retained *retained = checkpoint->delta.retained_buckets[b]; retained; retained = retained->next)
            removals += retained->is_changed && retained->sequence == 0;
    while (!err && removals > 0 && checkpoint->removal_capacity < checkpoint->removal_count + removals)
        err = delta_grow((void **)&checkpoint->removals, &checkpoint->removal_capacity, checkpoint->removal_capacity,
                         sizeof *checkpoint->removals);
    return err;
}

static enum err write_all(struct checkpoint_write *write, struct stored_session **sessions, struct checkpoint_state *state,
                          size_t *jobs_done_out)
{
    struct delta *delta = &write->checkpoint->delta;
    enum err err = checkpoint_write_acks(write, delta->acks, delta->ack_count);
    if (!err)
        err = write_retained(write, state);
    if (!err)
        err = write_forgotten(write);
    if (!err)
        err = checkpoint_write_messages(write);
    if (!err)
        err = write_sessions(write, sessions, state);
    if (!err)
        err = write_runs(write);
    if (!err)
        err = write_jobs(write, jobs_done_out);
    if (!err)
        err = checkpoint_write_releases(write);
    return err ? err : checkpoint_write_meta(write, state);
}

/* The removals that the database remembers now. */
static void note_removals(struct checkpoint *checkpoint)
{
    size_t kept = 0;
    for (size_t i = 0; i < checkpoint->removal_count; i++)
        if (checkpoint->removals[i].number >= checkpoint->forget_below)
            checkpoint->removals[kept++] = checkpoint->removals[i];
    for (size_t b = 0; b < checkpoint->delta.retained_bucket_count; b++)
        for (const struct delta_retained *retained = checkpoint->delta.retained_buckets[b]; retained; retained = retained->next)
            if (retained->is_changed && retained->sequence == 0 && retained->number >= checkpoint->forget_below)
                checkpoint->removals[kept++] = (struct checkpoint_removal){retained->number, retained->at};
    checkpoint->removal_count = kept;
}

static void on_committed(struct checkpoint *checkpoint, const struct checkpoint_state *state, size_t jobs_done, uint64_t bytes)
{
    note_removals(checkpoint);
    checkpoint->job_count -= jobs_done;
    if (jobs_done > 0 && checkpoint->job_count > 0)
        memmove(checkpoint->jobs, checkpoint->jobs + jobs_done, checkpoint->job_count * sizeof *checkpoint->jobs);
    checkpoint->state = *state;
    if (checkpoint->applied + 1 < state->cursor.position.sequence)
        checkpoint->applied = state->cursor.position.sequence - 1;
    checkpoint->is_new = false;
    checkpoint->run_session = 0;
    delta_clear(&checkpoint->delta);
    counter_inc(&checkpoint->stats.commits);
    counter_add(&checkpoint->stats.written_bytes, bytes);
    queue_stats_set(&checkpoint->stats.delta, 0, 0, 0);
}

/* --- no space ------------------------------------------------------------------------------------------------------------------------ */

/* The first `count` ended wants, with the last of them the jobs' share, under the position of the last commit. */
static enum err commit_removals(struct checkpoint *checkpoint, size_t count, size_t *jobs_done_out)
{
    struct checkpoint_write write;
    *jobs_done_out = 0;
    enum err err = checkpoint_write_begin(&write, checkpoint);
    if (err)
        return err;
    err = checkpoint_write_acks(&write, checkpoint->delta.acks, count);
    if (!err && count == checkpoint->delta.ack_count)
        err = write_jobs(&write, jobs_done_out);
    if (!err)
        err = checkpoint_write_releases(&write);
    struct checkpoint_state state = checkpoint->state;
    if (!err)
        err = checkpoint_write_meta(&write, &state);
    if (err) {
        kv_abort(write.txn);
        return err;
    }
    err = kv_commit(write.txn);
    if (!err)
        checkpoint->state = state;
    return err;
}

/* What is removed makes room for what did not fit. A removal needs pages, too, so fewer are tried while it finds none. What is done of the
 * log is found done when it comes again, so the position stays. One more commit follows: the database uses freed pages again from the
 * second one on. jobs_before: jobs of sessions that ended before this delta, the others are found again. */
static enum err remove_ahead(struct checkpoint *checkpoint, size_t *jobs_before)
{
    struct delta *delta = &checkpoint->delta;
    size_t count = delta->ack_count, jobs_done = 0;
    if (checkpoint->is_new || (count == 0 && checkpoint->job_count == 0))
        return ERR_OK;
    enum err err = commit_removals(checkpoint, count, &jobs_done);
    while (err == ERR_NOSPACE && count > 0) {
        count /= 8;
        err = commit_removals(checkpoint, count, &jobs_done);
    }
    if (err)
        return err == ERR_NOSPACE ? ERR_OK : err;
    if (jobs_done > *jobs_before)
        jobs_done = *jobs_before;
    /* Only what is not found again: who tries again as long as this counts would never end. */
    if (count > 0 || jobs_done > 0)
        counter_inc(&checkpoint->stats.removal_commits);
    *jobs_before -= jobs_done;
    if (jobs_done > 0)
        memmove(checkpoint->jobs, checkpoint->jobs + jobs_done, *jobs_before * sizeof *checkpoint->jobs);
    delta_drop_acks(delta, count);
    struct checkpoint_write write;
    err = checkpoint_write_begin(&write, checkpoint);
    if (!err) {
        err = checkpoint_write_meta(&write, &checkpoint->state);
        if (err)
            kv_abort(write.txn);
        else
            err = kv_commit(write.txn);
    }
    return err == ERR_NOSPACE ? ERR_OK : err;
}

/* --- all of it ----------------------------------------------------------------------------------------------------------------------- */

/* Everything below the position has been received by now. At replay nobody knows the present yet: by when the newest was, as far as the
 * wall clock went on evenly since the last commit, seconds before the stop; and not before that. */
static void mark_age(struct checkpoint *checkpoint, uint64_t sequence)
{
    const struct checkpoint_state *state = &checkpoint->state;
    int64_t steady_ns = state->steady_ns;
    if (checkpoint->age_max_ns == 0)
        return;
    if (!checkpoint->are_clocks_told) {
        int64_t passed_ns = checkpoint->received_max_ns - state->wall_ns;
        steady_ns += passed_ns > 0 ? passed_ns : 0;
    }
    age_marks_add(&checkpoint->ages, sequence, steady_ns, checkpoint->age_max_ns);
}

enum err checkpoint_commit(struct checkpoint *checkpoint, const struct log_cursor_value *cursor, struct errmsg *msg)
{
    CHECK(cursor->position.sequence > checkpoint->applied || checkpoint->applied == 0);
    mark_age(checkpoint, cursor->position.sequence);
    struct checkpoint_state state = checkpoint->state;
    state.broker_id = cursor->broker_id;
    state.cursor = *cursor;
    state.retained_number_max = checkpoint->retained_number_max;
    struct stored_session **sessions = NULL;
    size_t jobs_before = checkpoint->job_count, jobs_done = 0;
    struct checkpoint_write write = {0};
    enum err err = delta_list_sessions(&checkpoint->delta, &sessions);
    if (!err)
        err = prepare(checkpoint, sessions, &jobs_before);
    if (!err)
        err = checkpoint_write_begin(&write, checkpoint);
    if (!err) {
        err = write_all(&write, sessions, &state, &jobs_done);
        if (err)
            kv_abort(write.txn);
        else
            err = kv_commit(write.txn);
    }
    free(sessions);
    if (!err) {
        on_committed(checkpoint, &state, jobs_done, write.bytes);
        return ERR_OK;
    }
    if (err == ERR_NOSPACE) {
        counter_inc(&checkpoint->stats.commit_retries);
        enum err removed = remove_ahead(checkpoint, &jobs_before);
        err = removed ? removed : err;
    }
    checkpoint->job_count = jobs_before;
    return err_set(msg, err, "%s: commit: %s", kv_name(checkpoint->kv), err_text(err));
}
