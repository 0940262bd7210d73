#include "broker/durable/store_reader.h"

#include <stdlib.h>

#include "broker/actor/msg.h"
#include "broker/actor/op_backlog.h"
#include "broker/durable/checkpoint.h"
#include "common/check.h"
#include "common/clock.h"

#define READER_BACKLOG_NS NS_PER_MS       /* a ring was full: try again */
#define READER_RETRY_NS (100 * NS_PER_MS) /* memory is short, or the database could not be read */

struct request {
    struct request *next;
    struct store_read *read;
    actor_id from;
    int64_t since_ns;
};

struct store_reader {
    struct kv *kv;
    struct store_reader_io io;
    void *io_arg;
    struct op_backlog backlog;
    struct request *first, **last;
    uint64_t waiting;
    int64_t now_ns;
    struct store_reader_stats stats;
};

static bool post(void *arg, actor_id to, const struct op *op)
{
    struct store_reader *reader = arg;
    return reader->io.post(reader->io_arg, to, op);
}

struct store_reader *store_reader_new(struct kv *kv, const struct store_reader_io *io, void *io_arg)
{
    struct store_reader *reader = calloc(1, sizeof *reader);
    if (!reader)
        return NULL;
    reader->kv = kv;
    reader->io = *io;
    reader->io_arg = io_arg;
    reader->last = &reader->first;
    op_backlog_init(&reader->backlog);
    return reader;
}

static void drop_answer(const struct op *op) { store_read_free(op->read); }

void store_reader_free(struct store_reader *reader)
{
    if (!reader)
        return;
    for (struct request *request = reader->first, *next; request; request = next) {
        next = request->next;
        store_read_free(request->read);
        free(request);
    }
    op_backlog_deinit(&reader->backlog, drop_answer);
    free(reader);
}

struct store_reader_stats *store_reader_get_stats(struct store_reader *reader) { return &reader->stats; }
void store_reader_set_time(struct store_reader *reader, int64_t now_mono_ns) { reader->now_ns = now_mono_ns; }

/* ---- finding ---- */

static void on_corrupt(struct store_reader *reader, enum kv_tree tree, struct span key)
{
    counter_inc(&reader->stats.corrupt);
    if (reader->io.on_corrupt)
        reader->io.on_corrupt(reader->io_arg, tree, key);
}

static struct msg *msg_of(const struct record *rec, uint64_t sequence)
{
    struct msg_source source = {
        .topic = rec->topic,
        .properties = rec->properties,
        .payload = rec->payload,
        .qos = rec->qos,
        .retain = rec->retain,
        .publisher = rec->session,
        .receive_wall_ns = rec->received_ns,
        .expiry_wall_ns = rec->expiry_ns ? rec->expiry_ns : MSG_NO_EXPIRY,
    };
    struct msg *msg = msg_new(&source);
    if (!msg)
        return NULL;
    msg->retained_number = rec->retained_number ? rec->retained_number : rec->options; /* its own, or of what it is a copy of */
    memcpy(msg->correlation_id, rec->correlation, sizeof msg->correlation_id);
    atomic_store_explicit(&msg->sequence, sequence, memory_order_relaxed);
    return msg;
}

/* The identifiers of a want as an array; they were checked when they were logged. ERR_CORRUPT, ERR_NOMEM. */
static enum err read_ids(struct store_read_item *item, struct span ids)
{
    uint32_t count = 0, id;
    enum err err;
    struct span rest = ids;
    while ((err = record_id_next(&id, &rest)) == ERR_OK)
        count++;
    if (err != ERR_AGAIN)
        return err;
    if (count == 0)
        return ERR_OK;
    item->ids = malloc(count * sizeof *item->ids);
    if (!item->ids)
        return ERR_NOMEM;
    rest = ids;
    for (item->id_count = 0; item->id_count < count; item->id_count++) {
        err = record_id_next(&item->ids[item->id_count], &rest);
        CHECK(err == ERR_OK);
    }
    return ERR_OK;
}

/* What the session makes of the message. ERR_NOTFOUND: it does not want it. */
static enum err read_want(struct store_reader *reader, struct kv_txn *txn, struct store_read_item *item, uint64_t session, bool costs_only)
{
    struct checkpoint_want want;
    uint8_t key[16];
    enum err err = checkpoint_find_want(txn, &want, session, item->sequence);
    if (err == ERR_OK) {
        item->qos = want.qos;
        item->options = want.options;
        item->cost = want.cost;
        err = costs_only ? ERR_OK : read_ids(item, want.ids);
    }
    if (err == ERR_CORRUPT)
        on_corrupt(reader, KV_RECIPIENTS, kv_key_u64_u64(key, item->sequence, session));
    return err;
}

/* A body that is wanted and not there is damage, too. is_wanted: somebody said so. */
static enum err read_body(struct store_reader *reader, struct kv_txn *txn, struct store_read_item *item, bool is_wanted, size_t *bytes)
{
    struct record rec;
    uint8_t key[8];
    enum err err = checkpoint_find_body(txn, &rec, item->sequence);
    if (err == ERR_NOTFOUND && is_wanted)
        err = ERR_CORRUPT;
    if (err == ERR_CORRUPT)
        on_corrupt(reader, KV_BODIES, kv_key_u64(key, item->sequence));
    if (err)
        return err;
    size_t size = rec.topic.size + rec.properties.size + rec.payload.size;
    if (*bytes > 0 && *bytes + size > STORE_READ_BYTES)
        return ERR_FULL;
    item->msg = msg_of(&rec, item->sequence);
    if (!item->msg)
        return ERR_NOMEM;
    *bytes += size ? size : 1;
    counter_inc(&reader->stats.messages);
    counter_add(&reader->stats.bytes, size);
    return ERR_OK;
}

/* Returns 0 when the item has its answer, ERR_FULL when the request's bytes are used up, or what kept it from being read now. */
static enum err read_item(struct store_reader *reader, struct kv_txn *txn, const struct store_read *read, struct store_read_item *item,
                          size_t *bytes)
{
    bool is_wanted = read->kind != STORE_READ_BODIES;
    enum err err = is_wanted ? read_want(reader, txn, item, read->session, read->costs_only) : ERR_OK;
    if (!err && !read->costs_only)
        err = read_body(reader, txn, item, is_wanted, bytes);
    if (!err) {
        item->state = STORE_ITEM_FOUND;
        return ERR_OK;
    }
    free(item->ids);
    item->ids = NULL;
    item->id_count = 0;
    if (err != ERR_NOTFOUND && err != ERR_CORRUPT)
        return err;
    item->state = err == ERR_NOTFOUND ? STORE_ITEM_GONE : STORE_ITEM_CORRUPT;
    if (err == ERR_NOTFOUND)
        counter_inc(&reader->stats.gone);
    return ERR_OK;
}

/* Those of the positions that the session still wants: what a run names may be done with since a home before the last start read it. */
static enum err keep_wanted(struct kv_txn *txn, uint64_t session, uint64_t *sequences, uint32_t *count)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < *count; i++) {
        struct checkpoint_want want;
        enum err err = checkpoint_find_want(txn, &want, session, sequences[i]);
        if (err && err != ERR_NOTFOUND && err != ERR_CORRUPT)
            return err;
        if (err != ERR_NOTFOUND)
            sequences[kept++] = sequences[i];
    }
    *count = kept;
    return ERR_OK;
}

/* Damage keeps its place, so that the asker can go on behind it. */
static enum err on_damaged_run(struct store_reader *reader, struct kv_txn *txn, struct store_read *read)
{
    uint8_t from[16];
    struct span key, value;
    enum err err = kv_seek(txn, KV_RUNS, kv_key_u64_u64(from, read->session, read->run), &key, &value);
    if (err && err != ERR_CORRUPT)
        return err == ERR_NOTFOUND ? ERR_IO : err;
    on_corrupt(reader, KV_RUNS, key);
    read->run = key.size == 16 && kv_key_read_u64(key.data) == read->session ? kv_key_read_u64(key.data + 8) : 0;
    return ERR_OK;
}

/* The run as the request's items. */
static enum err read_run(struct store_reader *reader, struct kv_txn *txn, struct store_read *read)
{
    uint64_t sequences[CHECKPOINT_RUN], first = 0;
    uint32_t count = 0;
    _Static_assert(CHECKPOINT_RUN <= STORE_READ_MAX, "a run fits one request");
    enum err err = ERR_OK;
    read->count = 0;
    while (!err && count == 0) {
        err = checkpoint_find_run(txn, sequences, &count, read->session, read->run);
        if (err)
            break;
        first = sequences[0];
        read->run = first + 1; /* for the next, if nothing of this one is wanted */
        err = keep_wanted(txn, read->session, sequences, &count);
    }
    if (err == ERR_NOTFOUND) {
        read->run = 0;
        return ERR_OK;
    }
    if (err == ERR_CORRUPT)
        return on_damaged_run(reader, txn, read);
    if (err)
        return err;
    read->run = first;
    read->count = count;
    for (uint32_t i = 0; i < count; i++)
        read->items[i] = (struct store_read_item){.sequence = sequences[i], .state = STORE_ITEM_ASKED};
    return ERR_OK;
}

/* Returns 0 when it can be answered. */
static enum err read_request(struct store_reader *reader, struct store_read *read)
{
    struct kv_txn *txn;
    enum err err = kv_begin(reader->kv, &txn, false);
    if (err)
        return err;
    if (read->kind == STORE_READ_RUN)
        err = read_run(reader, txn, read);
    size_t bytes = 0;
    bool is_answered = err == ERR_OK && read->kind == STORE_READ_RUN;
    for (uint32_t i = 0; !err && i < read->count; i++) {
        if (read->items[i].state != STORE_ITEM_ASKED)
            continue;
        err = read_item(reader, txn, read, &read->items[i], &bytes);
        is_answered = is_answered || err == ERR_OK;
    }
    kv_abort(txn);
    /* What is left over is asked for again; only nothing at all is no answer. */
    return is_answered || read->count == 0 ? ERR_OK : err;
}

/* ---- requests ---- */

static void refresh_waiting(struct store_reader *reader)
{
    queue_stats_set(&reader->stats.waiting, reader->waiting, reader->waiting * sizeof(struct store_read),
                    reader->first ? reader->first->since_ns : 0);
}

void store_reader_on_op(struct store_reader *reader, const struct op *op)
{
    CHECK(op->type == OP_STORE_READ);
    CHECK(op->read->count <= STORE_READ_MAX);
    struct request *request = malloc(sizeof *request);
    CHECK_MSG(request, "out of memory with %llu requests waiting", (unsigned long long)reader->waiting); /* somebody waits for the answer */
    *request = (struct request){.read = op->read, .from = op->from, .since_ns = reader->now_ns};
    *reader->last = request;
    reader->last = &request->next;
    reader->waiting++;
    counter_inc(&reader->stats.requests);
    refresh_waiting(reader);
}

int64_t store_reader_work(struct store_reader *reader)
{
    int64_t wait = INT64_MAX;
    struct request *request = reader->first;
    if (request && read_request(reader, request->read) == ERR_OK) {
        struct op op = {.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = request->read};
        op_backlog_post(&reader->backlog, post, reader, request->from, &op);
        reader->first = request->next;
        if (!reader->first)
            reader->last = &reader->first;
        free(request);
        reader->waiting--;
        refresh_waiting(reader);
        wait = reader->first ? 0 : INT64_MAX;
    } else if (request) {
        wait = READER_RETRY_NS;
    }
    if (!op_backlog_flush(&reader->backlog, post, reader) && wait > READER_BACKLOG_NS)
        wait = READER_BACKLOG_NS;
    return wait;
}
