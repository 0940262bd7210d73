/* Everything out of the database, once, at start, by sequential walks in the order sessions, runs, wants, retained values.
 *
 * What belongs to nobody is noted on the way and removed between slices: the read transaction of a slice ends, a write transaction of
 * bounded size removes, a new read transaction goes on behind the last key. A slice of the recipients ends between two messages, so that
 * what is counted of a message (its chunks) and what is noted about it belong to the same state of the database.
 *
 *   wants of sessions that are not there     on_want says so: as if acknowledged
 *   runs of sessions that are not there, runs none of whose positions is wanted, damaged runs
 *   removals of retained values              nothing older than what replay brought can come any more
 *   HOLDERS that say another number than there are chunks (damage only)
 *   bodies that nobody holds (damage only)   looked for when there are more bodies than messages
 * Bodies are read only in that last case.
 *
 * Whether a want stands in a run: each session with runs has one of them in memory and a mark in it. Wants of a session come in ascending
 * order, its runs ascend too, so both are read forward side by side, and each run is read once. */
#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/checkpoint_write.h"

#include "common/check.h"
#include "common/crash_point.h"
#include "common/hash.h"

#include <stdlib.h>

#define LOAD_SLICE 65536  /* entries read in one transaction */
#define LOAD_GARBAGE 8192 /* notes that end a slice */

/* A session with runs, and the one that is being read. */
struct load_runs {
    uint64_t session;   /* 0: an empty slot */
    uint64_t first;     /* key of the run; 0: no more */
    uint32_t at, count; /* positions[at..count) are still ahead */
    bool is_wanted;     /* one of its positions was */
    uint64_t *positions;
};

struct load_note {
    enum kv_tree tree;
    uint64_t a, b;     /* its key; of KV_BODIES a alone, the message */
    uint64_t sequence; /* KV_RETAINED: whose body it held, 0: none */
};

struct load_count {
    uint64_t sequence;
    uint32_t holders;
};

struct load {
    struct checkpoint *checkpoint;
    const struct checkpoint_loader *loader;
    struct kv_txn *txn;
    struct buf row; /* a copy */
    size_t slice;   /* entries read in this transaction */

    struct load_note *notes;
    size_t note_count, note_capacity;
    struct delta_ack *acks;
    size_t ack_count, ack_capacity;
    struct load_count *counts; /* HOLDERS to be put right */
    size_t count_count, count_capacity;

    uint64_t *held; /* sequences of retained values, ascending */
    size_t held_count, held_capacity, held_at;

    struct load_runs *runs; /* hash table by session */
    size_t run_slots, run_sessions;

    uint64_t run_session, run_last; /* of the session whose runs are walked: its number, its newest position in a run */
    bool run_session_exists;

    uint64_t sequence;                 /* of the message whose chunks are walked; 0: of none */
    uint32_t chunk_count;              /* of it, so far */
    uint64_t last_sequence, last_want; /* the want given out last */

    bool is_in_holders; /* a walk of HOLDERS stands at: */
    uint64_t holders_sequence;
    uint32_t holders_value; /* 0: damaged */
    uint64_t holders_from;  /* below it everything was looked at */
    bool is_holders_over;

    uint64_t messages;     /* sequences that chunks or retained values name */
    uint64_t bodies;       /* as they were counted, if they were */
    uint64_t bodies_freed; /* by what was removed */
    bool is_retained_damaged;
    uint64_t session_count, retained_count;
};

/* --- slices -------------------------------------------------------------------------------------------------------------------------- */

static void on_corrupt(struct load *load, enum kv_tree tree, struct span key)
{
    counter_inc(&load->checkpoint->stats.corrupt);
    if (load->loader->on_corrupt)
        load->loader->on_corrupt(load->loader->arg, tree, key);
}

static enum err note(struct load *load, enum kv_tree tree, uint64_t a, uint64_t b, uint64_t sequence)
{
    enum err err = delta_grow((void **)&load->notes, &load->note_capacity, load->note_count, sizeof *load->notes);
    if (!err)
        load->notes[load->note_count++] = (struct load_note){tree, a, b, sequence};
    return err;
}

static enum err remove_noted(struct checkpoint_write *write, const struct load_note *noted)
{
    uint8_t key[16];
    if (noted->tree == KV_BODIES)
        return checkpoint_write_release(write, noted->a);
    enum err err = kv_del(write->txn, noted->tree, kv_key_u64_u64(key, noted->a, noted->b));
    return !err && noted->sequence ? checkpoint_write_release(write, noted->sequence) : err;
}

static enum err remove_all(struct load *load, struct checkpoint_write *write)
{
    enum err err = ERR_OK;
    write->has_holders = true;
    for (size_t i = 0; !err && i < load->count_count; i++)
        err = checkpoint_write_holders(write, load->counts[i].sequence, load->counts[i].holders);
    if (!err)
        err = checkpoint_write_acks(write, load->acks, load->ack_count);
    for (size_t i = 0; !err && i < load->note_count; i++)
        err = remove_noted(write, &load->notes[i]);
    return err ? err : checkpoint_write_releases(write);
}

/* What was noted. Without space for it the next load tries again. */
static enum err clean(struct load *load)
{
    if (load->note_count == 0 && load->ack_count == 0 && load->count_count == 0)
        return ERR_OK;
    struct checkpoint_write write;
    struct checkpoint_state state = load->checkpoint->state;
    enum err err = checkpoint_write_begin(&write, load->checkpoint);
    if (!err) {
        err = remove_all(load, &write);
        if (!err && write.bodies_freed > 0)
            err = checkpoint_write_meta(&write, &state);
        if (err)
            kv_abort(write.txn);
        else
            err = kv_commit(write.txn);
        CRASH_POINT("checkpoint_load_cleaned"); /* a part of it */
    }
    if (!err) {
        load->bodies_freed += write.bodies_freed;
        load->checkpoint->state = state;
        for (size_t i = 0; i < load->note_count; i++)
            load->retained_count -= load->notes[i].tree == KV_RETAINED && load->notes[i].sequence != 0;
    }
    load->note_count = load->ack_count = load->count_count = 0;
    return err == ERR_NOSPACE ? ERR_OK : err;
}

static enum err end_slice(struct load *load)
{
    kv_abort(load->txn);
    load->txn = NULL;
    load->is_in_holders = load->is_holders_over = false;
    load->slice = 0;
    enum err err = clean(load);
    return err ? err : checkpoint_begin_look(load->checkpoint, &load->txn);
}

static bool is_slice_full(const struct load *load)
{
    return load->slice >= LOAD_SLICE || load->note_count + load->ack_count + load->count_count >= LOAD_GARBAGE;
}

/* One entry. err: 0 or ERR_CORRUPT of its value. key_size: what its key has; another size is damage. */
typedef enum err (*load_entry_fn)(struct load *load, enum err err, struct span key, struct span value);

struct load_tree {
    enum kv_tree tree;
    size_t key_size;
    load_entry_fn on_entry;
    enum err (*on_cut)(struct load *load); /* set: a slice ends only where the key's first number changes, after this */
};

static enum err cut(struct load *load, const struct load_tree *tree)
{
    enum err err = tree->on_cut ? tree->on_cut(load) : ERR_OK;
    return err ? err : end_slice(load);
}

static enum err walk(struct load *load, const struct load_tree *tree)
{
    uint8_t last[16] = {0};
    bool has_last = false;
    struct span key, value;
    enum err err = end_slice(load);
    if (err)
        return err;
    err = kv_seek(load->txn, tree->tree, span_of(NULL, 0), &key, &value);
    while (!err || (err == ERR_CORRUPT && key.size > 0)) {
        /* Keys that do not ascend are another page's, and to go on from one would lead back. */
        bool is_ours = key.size == tree->key_size && (!has_last || memcmp(key.data, last, key.size) > 0);
        if (is_ours && is_slice_full(load) && (!tree->on_cut || memcmp(last, key.data, 8) != 0)) {
            uint8_t from[16];
            memcpy(from, key.data, key.size);
            err = cut(load, tree);
            if (err)
                return err;
            err = kv_seek(load->txn, tree->tree, span_of(from, tree->key_size), &key, &value);
            continue;
        }
        load->slice++;
        if (is_ours) {
            memcpy(last, key.data, key.size);
            has_last = true;
        } else
            on_corrupt(load, tree->tree, key);
        err = is_ours ? tree->on_entry(load, err, key, value) : ERR_OK;
        if (err)
            return err;
        err = kv_next(load->txn, tree->tree, &key, &value);
    }
    return err == ERR_NOTFOUND ? ERR_OK : err;
}

/* --- retained values: what they hold, and removals ------------------------------------------------------------------------------------ */

static enum err on_held(struct load *load, enum err err, struct span key, struct span value)
{
    struct checkpoint_retained retained;
    if (err || checkpoint_retained_decode(&retained, value) != ERR_OK)
        return ERR_OK; /* told when they are loaded */
    if (retained.sequence == 0)
        return note(load, KV_RETAINED, kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8), 0);
    err = delta_grow((void **)&load->held, &load->held_capacity, load->held_count, sizeof *load->held);
    if (!err)
        load->held[load->held_count++] = retained.sequence;
    return err;
}

static enum err load_held(struct load *load)
{
    enum err err = walk(load, &(struct load_tree){KV_RETAINED, 16, on_held, NULL});
    if (load->held_count > 0)
        qsort(load->held, load->held_count, sizeof *load->held, compare_u64);
    return err;
}

/* --- sessions ------------------------------------------------------------------------------------------------------------------------ */

static enum err call_on_session(struct load *load, uint64_t number, struct session_value *value)
{
    uint16_t *inbound = NULL;
    struct checkpoint_sent *sent = NULL;
    enum err err = ERR_OK;
    if (value->inbound_count > 0)
        inbound = (uint16_t *)malloc(value->inbound_count * sizeof *inbound);
    if (value->sent_count > 0)
        sent = (struct checkpoint_sent *)malloc(value->sent_count * sizeof *sent);
    if ((value->inbound_count > 0 && !inbound) || (value->sent_count > 0 && !sent)) {
        err = ERR_NOMEM;
        goto out;
    }
    for (uint32_t i = 0; i < value->inbound_count; i++) {
        bool is_there = session_value_next_inbound(&value->inbound, &inbound[i]);
        CHECK(is_there);
    }
    for (uint32_t i = 0; i < value->sent_count; i++) {
        bool is_there = session_value_next_sent(&value->sent, &sent[i]);
        CHECK(is_there);
    }
    struct checkpoint_session session = {
        .number = number,
        .client_id = value->head.client_id,
        .expiry_interval_s = (uint32_t)(value->head.options & RECORD_SESSION_EXPIRY_MASK),
        .was_connected = (value->head.options & RECORD_SESSION_CONNECTED) != 0,
        .since_wall_ns = value->head.received_ns,
        .protocol = (uint8_t)(value->head.options >> RECORD_SESSION_PROTOCOL_SHIFT),
        .subscriptions = value->subscriptions,
        .will = value->will,
        .inbound_ids = inbound,
        .inbound_count = value->inbound_count,
        .sent = sent,
        .sent_count = value->sent_count,
    };
    load->session_count++;
    err = load->loader->on_session(load->loader->arg, &session);
out:
    free(inbound);
    free(sent);
    return err;
}

static enum err on_session(struct load *load, enum err err, struct span key, struct span value)
{
    struct session_value decoded;
    if (!err)
        err = session_value_decode(&decoded, value);
    if (err) {
        on_corrupt(load, KV_SESSIONS, key);
        return ERR_OK;
    }
    return call_on_session(load, kv_key_read_u64(key.data), &decoded);
}

/* --- runs ---------------------------------------------------------------------------------------------------------------------------- */

static struct load_runs *find_runs(const struct load *load, uint64_t session)
{
    size_t mask = load->run_slots - 1;
    size_t at = (size_t)hash_u64(session, 0) & mask;
    while (load->runs[at].session != 0 && load->runs[at].session != session)
        at = (at + 1) & mask;
    return &load->runs[at];
}

static enum err grow_runs(struct load *load)
{
    if (load->run_sessions < load->run_slots / 2)
        return ERR_OK;
    struct load_runs *old = load->runs;
    size_t old_slots = load->run_slots, slots = old_slots ? 2 * old_slots : 1024;
    struct load_runs *runs = (struct load_runs *)calloc(slots, sizeof *runs);
    if (!runs)
        return ERR_NOMEM;
    load->runs = runs;
    load->run_slots = slots;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].session != 0)
            *find_runs(load, old[i].session) = old[i];
    free(old);
    return ERR_OK;
}

/* The session's first run is in memory from here on, and the session is one that has runs. */
static enum err add_runs(struct load *load, uint64_t session, uint64_t first, const uint64_t *sequences, uint32_t count)
{
    enum err err = grow_runs(load);
    if (err)
        return err;
    uint64_t *positions = (uint64_t *)malloc(CHECKPOINT_RUN * sizeof *positions);
    if (!positions)
        return ERR_NOMEM;
    memcpy(positions, sequences, count * sizeof *positions);
    load->run_sessions++;
    *find_runs(load, session) = (struct load_runs){.session = session, .first = first, .count = count, .positions = positions};
    return ERR_OK;
}

static enum err does_session_exist(struct load *load, uint64_t session, bool *exists_out)
{
    uint8_t key[8];
    struct span value;
    struct session_value decoded;
    enum err err = session == 0 ? ERR_NOTFOUND : kv_get(load->txn, KV_SESSIONS, kv_key_u64(key, session), &value);
    if (!err)
        err = session_value_decode(&decoded, value);
    *exists_out = !err;
    return err == ERR_NOTFOUND || err == ERR_CORRUPT ? ERR_OK : err;
}

/* The session whose runs were walked is complete. */
static enum err finish_runs(struct load *load)
{
    enum err err = ERR_OK;
    if (load->run_last != 0 && load->loader->on_runs)
        err = load->loader->on_runs(load->loader->arg, load->run_session, load->run_last);
    load->run_session = load->run_last = 0;
    return err;
}

static enum err on_run(struct load *load, enum err err, struct span key, struct span value)
{
    uint64_t session = kv_key_read_u64(key.data), first = kv_key_read_u64(key.data + 8);
    if (session != load->run_session || session == 0) {
        enum err finished = finish_runs(load);
        if (!finished)
            finished = does_session_exist(load, session, &load->run_session_exists);
        if (finished)
            return finished;
        load->run_session = session;
    }
    if (!load->run_session_exists)
        return note(load, KV_RUNS, session, first, 0);
    uint64_t sequences[CHECKPOINT_RUN];
    uint32_t count;
    if (!err)
        err = checkpoint_run_decode(sequences, &count, first, value);
    if (err || first <= load->run_last) {
        on_corrupt(load, KV_RUNS, key);
        return note(load, KV_RUNS, session, first, 0);
    }
    if (load->run_last == 0)
        err = add_runs(load, session, first, sequences, count);
    load->run_last = sequences[count - 1];
    return err;
}

static enum err load_runs(struct load *load)
{
    enum err err = walk(load, &(struct load_tree){KV_RUNS, 16, on_run, NULL});
    return err ? err : finish_runs(load);
}

/* The run in memory is behind us: on to the next, if there is one. */
static enum err leave_run(struct load *load, struct load_runs *runs)
{
    uint8_t bytes[16];
    struct span key, value;
    uint64_t last = runs->positions[runs->count - 1];
    enum err err = runs->is_wanted ? ERR_OK : note(load, KV_RUNS, runs->session, runs->first, 0);
    if (err)
        return err;
    runs->first = 0;
    runs->at = runs->count = 0;
    runs->is_wanted = false;
    err = kv_seek(load->txn, KV_RUNS, kv_key_u64_u64(bytes, runs->session, last), &key, &value);
    while ((!err || err == ERR_CORRUPT) && key.size == 16 && kv_key_read_u64(key.data) == runs->session) {
        uint64_t first = kv_key_read_u64(key.data + 8);
        if (!err && first > last && checkpoint_run_decode(runs->positions, &runs->count, first, value) == ERR_OK) {
            runs->first = first;
            return ERR_OK;
        }
        err = kv_next(load->txn, KV_RUNS, &key, &value); /* a damaged one, which was told */
    }
    return err && err != ERR_NOTFOUND && key.size == 0 ? err : ERR_OK;
}

/* Ascending sequences for a session: does its run have this one? */
static enum err is_in_run(struct load *load, uint64_t session, uint64_t sequence, bool *is_in_run_out)
{
    *is_in_run_out = false;
    struct load_runs *runs = load->run_sessions > 0 ? find_runs(load, session) : NULL;
    while (runs && runs->first != 0) {
        while (runs->at < runs->count && runs->positions[runs->at] < sequence)
            runs->at++;
        if (runs->at < runs->count) {
            *is_in_run_out = runs->positions[runs->at] == sequence;
            runs->is_wanted = runs->is_wanted || *is_in_run_out;
            return ERR_OK;
        }
        enum err err = leave_run(load, runs);
        if (err)
            return err;
    }
    return ERR_OK;
}

/* Runs that no want has led to. */
static enum err leave_all_runs(struct load *load)
{
    enum err err = ERR_OK;
    for (size_t i = 0; !err && i < load->run_slots; i++) {
        while (!err && load->runs[i].first != 0) {
            err = leave_run(load, &load->runs[i]);
            if (!err && is_slice_full(load))
                err = end_slice(load);
        }
    }
    return err;
}

/* --- holders ------------------------------------------------------------------------------------------------------------------------- */

static enum err count_holders(struct load *load, uint64_t sequence, uint32_t holders)
{
    enum err err = delta_grow((void **)&load->counts, &load->count_capacity, load->count_count, sizeof *load->counts);
    if (!err)
        load->counts[load->count_count++] = (struct load_count){sequence, holders};
    return err;
}

/* To the next entry of HOLDERS. */
static enum err step_holders(struct load *load)
{
    uint8_t from[8];
    struct span key, value;
    enum err err = load->is_in_holders ? kv_next(load->txn, KV_HOLDERS, &key, &value)
                                       : kv_seek(load->txn, KV_HOLDERS, kv_key_u64(from, load->holders_from), &key, &value);
    while ((!err || err == ERR_CORRUPT) && key.size > 0 && key.size != 8) {
        on_corrupt(load, KV_HOLDERS, key);
        err = kv_next(load->txn, KV_HOLDERS, &key, &value);
    }
    load->is_holders_over = err == ERR_NOTFOUND;
    load->is_in_holders = !load->is_holders_over;
    if (err && !(err == ERR_CORRUPT && key.size > 0))
        return err == ERR_NOTFOUND ? ERR_OK : err;
    load->holders_sequence = kv_key_read_u64(key.data);
    load->holders_value = err || value.size != 4 ? 0 : load_le32(value.data);
    if (load->holders_value == 0)
        on_corrupt(load, KV_HOLDERS, key);
    return ERR_OK;
}

/* HOLDERS must say `holders` of this message, and nothing of those between the last one and this. */
static enum err check_holders(struct load *load, uint64_t sequence, uint32_t holders)
{
    enum err err = ERR_OK;
    while (!err && !load->is_holders_over && (!load->is_in_holders || load->holders_sequence < sequence)) {
        if (load->is_in_holders)
            err = count_holders(load, load->holders_sequence, 0);
        if (!err)
            err = step_holders(load);
    }
    if (err)
        return err;
    bool is_there = load->is_in_holders && load->holders_sequence == sequence;
    bool is_right = is_there ? holders > 1 && load->holders_value == holders : holders <= 1;
    if (is_there)
        err = step_holders(load);
    return err || is_right ? err : count_holders(load, sequence, holders);
}

/* --- wants --------------------------------------------------------------------------------------------------------------------------- */

/* The message whose chunks were walked is complete. */
static enum err finish_message(struct load *load)
{
    uint64_t sequence = load->sequence;
    if (sequence == 0)
        return ERR_OK;
    while (load->held_at < load->held_count && load->held[load->held_at] < sequence) {
        load->held_at++;
        load->messages++;
    }
    bool is_held = load->held_at < load->held_count && load->held[load->held_at] == sequence;
    load->held_at += is_held;
    load->messages++;
    load->sequence = 0;
    enum err err = check_holders(load, sequence, load->chunk_count + is_held);
    load->holders_from = sequence + 1;
    return err;
}

static enum err call_on_want(struct load *load, uint64_t sequence, const struct record_recipient *recipient, uint32_t cost)
{
    struct checkpoint_want want = {.qos = recipient->qos, .options = recipient->options, .cost = cost, .ids = recipient->ids};
    bool is_run;
    enum err err = is_in_run(load, recipient->session, sequence, &is_run);
    if (!err)
        err = load->loader->on_want(load->loader->arg, recipient->session, sequence, &want, cost, is_run);
    if (err != ERR_NOTFOUND)
        return err;
    counter_inc(&load->checkpoint->stats.dropped_deleted);
    err = delta_grow((void **)&load->acks, &load->ack_capacity, load->ack_count, sizeof *load->acks);
    if (!err)
        load->acks[load->ack_count++] = (struct delta_ack){sequence, recipient->session};
    return err;
}

/* A chunk of this message stands here. */
static enum err begin_chunk(struct load *load, uint64_t sequence)
{
    if (sequence != load->sequence) {
        enum err err = finish_message(load);
        if (err)
            return err;
        load->sequence = sequence;
        load->chunk_count = 0;
    }
    load->chunk_count++;
    return ERR_OK;
}

static enum err on_wants(struct load *load, const struct checkpoint_wants *wants)
{
    uint32_t cost = checkpoint_cost(wants->content_bytes);
    struct record_recipient recipient;
    struct span rest = wants->recipients;
    enum err err = begin_chunk(load, wants->sequence);
    while (!err && record_recipient_next(&recipient, &rest) == ERR_OK) {
        err = call_on_want(load, wants->sequence, &recipient, cost);
        load->last_sequence = wants->sequence;
        load->last_want = recipient.session;
    }
    return err;
}

/* A row that is read while other things are looked up: in a transaction that could write it would not last. */
static enum err keep_row(struct load *load, struct span *key, struct span *value)
{
    if (!load->txn->is_write)
        return ERR_OK;
    size_t key_size = key->size;
    buf_clear(&load->row);
    buf_put_span(&load->row, *key);
    buf_put_span(&load->row, *value);
    if (load->row.err)
        return load->row.err;
    *key = span_of(load->row.data, key_size);
    *value = span_of(load->row.data + key_size, load->row.size - key_size);
    return ERR_OK;
}

static void call_on_want_soon(struct load *load, struct checkpoint_row row, int step)
{
    struct checkpoint_wants wants;
    struct record_recipient recipient;
    while (checkpoint_row_next_wants(&row, &wants) == ERR_OK)
        while (record_recipient_next(&recipient, &wants.recipients) == ERR_OK)
            load->loader->on_want_soon(load->loader->arg, recipient.session, step);
}

static enum err on_row(struct load *load, enum err err, struct span key, struct span value)
{
    enum err kept = keep_row(load, &key, &value);
    if (kept)
        return kept;
    uint64_t first = kv_key_read_u64(key.data);
    if (!err)
        err = checkpoint_check_wants(key, value, load->last_sequence, load->last_want); /* all of it before any of it is given out */
    if (err) { /* nobody knows whose wants they were, but of the first */
        on_corrupt(load, KV_RECIPIENTS, key);
        return first != 0 && first >= load->last_sequence ? begin_chunk(load, first) : ERR_OK;
    }
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct checkpoint_wants wants;
    for (int step = 0; load->loader->on_want_soon && step < CHECKPOINT_SOON_STEPS; step++)
        call_on_want_soon(load, row, step);
    while (!err && checkpoint_row_next_wants(&row, &wants) == ERR_OK)
        err = on_wants(load, &wants);
    return err;
}

static enum err load_wants(struct load *load)
{
    enum err err = walk(load, &(struct load_tree){KV_RECIPIENTS, 16, on_row, finish_message});
    if (!err)
        err = finish_message(load);
    load->messages += load->held_count - load->held_at;
    if (!err)
        err = check_holders(load, UINT64_MAX, 1);
    return err ? err : leave_all_runs(load);
}

/* --- retained values ----------------------------------------------------------------------------------------------------------------- */

static enum err on_retained(struct load *load, enum err err, struct span key, struct span value)
{
    struct checkpoint_retained retained;
    if (!err)
        err = checkpoint_retained_decode(&retained, value);
    if (err) {
        load->is_retained_damaged = true;
        on_corrupt(load, KV_RETAINED, key);
        return ERR_OK;
    }
    if (retained.sequence == 0)
        return ERR_OK;
    err = load->loader->on_retained(load->loader->arg, retained.topic, retained.number, retained.sequence,
                                    checkpoint_cost(retained.content_bytes), retained.expiry_ns);
    if (err && err != ERR_NOTFOUND)
        return err;
    load->retained_count++; /* also one that is to go: until it has gone */
    return err ? note(load, KV_RETAINED, kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8), retained.sequence) : ERR_OK;
}

/* --- bodies -------------------------------------------------------------------------------------------------------------------------- */

/* Does the last row of RECIPIENTS that may have wants of the message, of sessions up to `session`, have some? One that cannot be read may.
 * *before_out: if not, they may stand before this session; 0: nowhere. */
static enum err has_wants(struct load *load, uint64_t sequence, uint64_t session, bool *has_out, uint64_t *before_out)
{
    uint8_t from[16];
    struct span key, value;
    struct checkpoint_wants wants;
    enum err err = kv_floor(load->txn, KV_RECIPIENTS, kv_key_u64_u64(from, sequence, session), &key, &value);
    *before_out = 0;
    *has_out = err == ERR_CORRUPT && key.size > 0;
    if (err)
        return err == ERR_NOTFOUND || *has_out ? ERR_OK : err;
    if (key.size != 16)
        return ERR_OK;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    while ((err = checkpoint_row_next_wants(&row, &wants)) == ERR_OK && wants.sequence < sequence)
        ;
    *has_out = err == ERR_CORRUPT || (!err && wants.sequence == sequence);
    if (!*has_out && kv_key_read_u64(key.data) == sequence) /* it had some, of which none are left: its others have a row before */
        *before_out = kv_key_read_u64(key.data + 8);
    return ERR_OK;
}

static enum err is_wanted(struct load *load, uint64_t sequence, bool *is_wanted_out)
{
    uint64_t before;
    enum err err = has_wants(load, sequence, UINT64_MAX, is_wanted_out, &before);
    while (!err && before > 0)
        err = has_wants(load, sequence, before - 1, is_wanted_out, &before);
    return err;
}

static enum err on_bodies(struct load *load, enum err err, struct span key, struct span value)
{
    if (err)
        return ERR_OK;
    err = keep_row(load, &key, &value);
    if (err)
        return err;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct span record;
    while (checkpoint_row_next_body(&row, &record) == ERR_OK) {
        bool is_held = load->held_count > 0 && bsearch(&row.sequence, load->held, load->held_count, sizeof *load->held, compare_u64);
        load->bodies++;
        err = is_held ? ERR_OK : is_wanted(load, row.sequence, &is_held);
        if (!err && !is_held)
            err = note(load, KV_BODIES, row.sequence, 0, 0);
        if (err)
            return err;
    }
    return ERR_OK;
}

/* Are there more bodies than messages? A retained value that cannot be read may hold one: then none is removed. */
static enum err load_bodies(struct load *load)
{
    struct checkpoint_state *state = &load->checkpoint->state;
    enum err err = end_slice(load);
    if (err || load->is_retained_damaged || state->body_count + load->bodies_freed <= load->messages)
        return err;
    load->bodies_freed = 0;
    err = walk(load, &(struct load_tree){KV_BODIES, 8, on_bodies, NULL});
    if (!err)
        err = end_slice(load);
    state->body_count = load->bodies - load->bodies_freed;
    return err;
}

/* --- all ----------------------------------------------------------------------------------------------------------------------------- */

static void free_load(struct load *load)
{
    kv_abort(load->txn);
    buf_deinit(&load->row);
    for (size_t i = 0; i < load->run_slots; i++)
        free(load->runs[i].positions);
    free(load->runs);
    free(load->notes);
    free(load->acks);
    free(load->counts);
    free(load->held);
}

enum err checkpoint_load(struct checkpoint *checkpoint, const struct checkpoint_loader *loader, struct errmsg *msg)
{
    CHECK(delta_is_empty(&checkpoint->delta));
    struct load load = {.checkpoint = checkpoint, .loader = loader};
    buf_init(&load.row, KV_VALUE_MAX);
    CRASH_POINT("checkpoint_load");
    enum err err = load_held(&load);
    if (!err)
        err = walk(&load, &(struct load_tree){KV_SESSIONS, 8, on_session, NULL});
    if (!err)
        err = load_runs(&load);
    if (!err)
        err = load_wants(&load);
    if (!err)
        err = walk(&load, &(struct load_tree){KV_RETAINED, 16, on_retained, NULL});
    if (!err)
        err = load_bodies(&load);
    free_load(&load);
    if (err)
        return err_set(msg, err, "%s: load: %s", kv_name(checkpoint->kv), err_text(err));
    checkpoint->state.session_count = load.session_count;
    checkpoint->state.retained_count = load.retained_count;
    checkpoint->removal_count = 0;
    checkpoint->job_count = 0; /* what they had left to do is done */
    return ERR_OK;
}
