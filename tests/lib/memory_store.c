#include "tests/lib/memory_store.h"

#include <stdlib.h>
#include <string.h>

#include "broker/actor/msg.h"
#include "common/check.h"
#include "common/position_list.h"

struct body {
    uint64_t sequence;
    struct msg *msg;
    bool is_damaged;
};
struct want {
    uint64_t session, sequence;
    uint8_t qos, options;
    uint32_t *ids;
    uint32_t id_count;
};
struct run {
    uint64_t session;
    struct store_run *run;
    bool is_committed, is_dropped;
};
struct sent {
    uint64_t session, sequence;
    uint16_t packet_id;
};

struct memory_store {
    struct body *bodies;
    struct want *wants;
    struct run *runs;
    struct sent *sents;
    size_t body_count, want_count, run_count, sent_count;
    uint64_t applied;    /* sequence of the last record */
    uint64_t checkpoint; /* committed */
};

/* Room for one more in an array; grows by doubling at powers of two. */
#define GROW(array, count)                                                                                                                 \
    do {                                                                                                                                   \
        if (((count) & ((count)-1)) == 0) {                                                                                                \
            (array) = realloc((array), ((count) ? (count)*2 : 1) * sizeof *(array));                                                       \
            CHECK(array);                                                                                                                  \
        }                                                                                                                                  \
    } while (0)

struct memory_store *memory_store_new(void)
{
    struct memory_store *store = calloc(1, sizeof *store);
    CHECK(store);
    return store;
}

void memory_store_free(struct memory_store *store)
{
    if (!store)
        return;
    for (size_t i = 0; i < store->body_count; i++)
        msg_unref(store->bodies[i].msg);
    for (size_t i = 0; i < store->want_count; i++)
        free(store->wants[i].ids);
    for (size_t i = 0; i < store->run_count; i++)
        free(store->runs[i].run);
    free(store->bodies);
    free(store->wants);
    free(store->runs);
    free(store->sents);
    free(store);
}

static struct want *find_want(const struct memory_store *store, uint64_t session, uint64_t sequence)
{
    for (size_t i = 0; i < store->want_count; i++)
        if (store->wants[i].session == session && store->wants[i].sequence == sequence)
            return &store->wants[i];
    return NULL;
}

static void end_want(struct memory_store *store, uint64_t session, uint64_t sequence, bool must_be)
{
    struct want *want = find_want(store, session, sequence);
    CHECK(want || !must_be);
    if (!want)
        return;
    free(want->ids);
    memmove(want, want + 1, (size_t)(store->wants + --store->want_count - want) * sizeof *want);
}

static void apply_publish(struct memory_store *store, const struct record *rec, uint64_t sequence)
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
    GROW(store->bodies, store->body_count);
    struct body *body = &store->bodies[store->body_count++];
    *body = (struct body){.sequence = sequence, .msg = msg_new(&source)};
    CHECK(body->msg);
    body->msg->retained_number = rec->retained_number ? rec->retained_number : rec->options; /* its own, or of what it is a copy of */
    atomic_store(&body->msg->sequence, sequence);
    struct record_recipient recipient;
    for (struct span rest = rec->recipients; record_recipient_next(&recipient, &rest) == ERR_OK;) {
        GROW(store->wants, store->want_count);
        struct want *want = &store->wants[store->want_count++];
        *want = (struct want){.session = recipient.session, .sequence = sequence, .qos = recipient.qos, .options = recipient.options};
        uint32_t id;
        for (struct span ids = recipient.ids; record_id_next(&id, &ids) == ERR_OK;) {
            want->ids = realloc(want->ids, (want->id_count + 1) * sizeof *want->ids);
            CHECK(want->ids);
            want->ids[want->id_count++] = id;
        }
    }
}

static struct sent *find_sent(const struct memory_store *store, uint64_t session, uint16_t packet_id)
{
    for (size_t i = 0; i < store->sent_count; i++)
        if (store->sents[i].session == session && store->sents[i].packet_id == packet_id)
            return &store->sents[i];
    return NULL;
}

static void end_sent(struct memory_store *store, struct sent *sent) { *sent = store->sents[--store->sent_count]; }

static void apply_delete(struct memory_store *store, uint64_t session)
{
    for (size_t i = store->want_count; i-- > 0;)
        if (store->wants[i].session == session)
            end_want(store, session, store->wants[i].sequence, true);
    for (size_t i = store->sent_count; i-- > 0;)
        if (store->sents[i].session == session)
            end_sent(store, &store->sents[i]);
}

void memory_store_apply(struct memory_store *store, const struct record *rec, uint64_t sequence)
{
    CHECK(sequence > store->applied);
    store->applied = sequence;
    if (rec->type == RECORD_PUBLISH) {
        apply_publish(store, rec, sequence);
    } else if (rec->type == RECORD_ACK) {
        if (rec->subject_sequence || !rec->positions.size)
            end_want(store, rec->session, rec->subject_sequence, rec->packet_id == 0);
        uint64_t subject = 0;
        for (size_t offset = 0; position_list_next(rec->positions, &offset, &subject) == ERR_OK;)
            end_want(store, rec->session, subject, rec->packet_id == 0);
        struct sent *sent = rec->packet_id ? find_sent(store, rec->session, rec->packet_id) : NULL;
        CHECK(!rec->packet_id || sent);
        if (sent)
            end_sent(store, sent);
    } else if (rec->type == RECORD_DROP) {
        uint64_t subject = 0;
        for (size_t offset = 0; position_list_next(rec->positions, &offset, &subject) == ERR_OK;)
            end_want(store, rec->session, subject, false);
    } else if (rec->type == RECORD_SENT) {
        CHECK(!find_sent(store, rec->session, rec->packet_id));
        GROW(store->sents, store->sent_count);
        store->sents[store->sent_count++] =
            (struct sent){.session = rec->session, .sequence = rec->subject_sequence, .packet_id = rec->packet_id};
    } else if (rec->type == RECORD_RECEIVED) {
        const struct sent *sent = find_sent(store, rec->session, rec->packet_id);
        CHECK(sent);
        CHECK(sent->sequence == rec->subject_sequence);
        end_want(store, rec->session, rec->subject_sequence, false);
    } else if (rec->type == RECORD_SESSION_DELETE) {
        apply_delete(store, rec->session);
    }
}

void memory_store_on_op(struct memory_store *store, const struct op *op)
{
    if (op->type == OP_STORE_RUN) {
        const struct store_run *run = op->run.run;
        CHECK(run->count > 0);
        for (uint32_t i = 0; i < run->count; i++) {
            CHECK(i == 0 || run->sequences[i] > run->sequences[i - 1]);
            CHECK(run->sequences[i] < store->checkpoint);
        }
        for (size_t i = 0; i < store->run_count; i++)
            if (store->runs[i].session == op->run.session_number)
                CHECK(run->sequences[0] > store->runs[i].run->sequences[store->runs[i].run->count - 1]);
        GROW(store->runs, store->run_count);
        store->runs[store->run_count++] = (struct run){.session = op->run.session_number, .run = op->run.run};
    } else if (op->type == OP_STORE_RUN_DROP) {
        bool is_there = false;
        for (size_t i = 0; i < store->run_count; i++)
            if (store->runs[i].session == op->run.session_number && store->runs[i].run->sequences[0] == op->run.first)
                is_there = store->runs[i].is_dropped = true;
        CHECK(is_there);
    }
}

uint64_t memory_store_commit(struct memory_store *store)
{
    for (size_t i = 0; i < store->run_count; i++)
        store->runs[i].is_committed = true;
    for (size_t i = store->run_count; i-- > 0;) {
        if (!store->runs[i].is_dropped)
            continue;
        free(store->runs[i].run);
        memmove(&store->runs[i], &store->runs[i + 1], (--store->run_count - i) * sizeof store->runs[0]);
    }
    return store->checkpoint = store->applied + 1;
}

void memory_store_crash(struct memory_store *store)
{
    for (size_t i = store->run_count; i-- > 0;) {
        store->runs[i].is_dropped = false;
        if (store->runs[i].is_committed)
            continue;
        free(store->runs[i].run);
        memmove(&store->runs[i], &store->runs[i + 1], (--store->run_count - i) * sizeof store->runs[0]);
    }
}

/* The first committed run at or after `from`, NULL when there is none. */
static const struct store_run *find_run(const struct memory_store *store, uint64_t session, uint64_t from)
{
    const struct store_run *found = NULL;
    for (size_t i = 0; i < store->run_count; i++) {
        const struct run *run = &store->runs[i];
        if (run->session == session && run->is_committed && run->run->sequences[0] >= from &&
            (!found || run->run->sequences[0] < found->sequences[0]))
            found = run->run;
    }
    return found;
}

static void read_item(const struct memory_store *store, struct store_read_item *item, uint64_t session, bool costs_only)
{
    CHECK(item->sequence < store->checkpoint);
    CHECK(item->sequence > 0);
    const struct want *want = find_want(store, session, item->sequence);
    item->state = STORE_ITEM_GONE;
    for (size_t i = 0; want && i < store->body_count; i++) {
        const struct body *body = &store->bodies[i];
        if (body->sequence != item->sequence)
            continue;
        item->state = body->is_damaged && !costs_only ? STORE_ITEM_CORRUPT : STORE_ITEM_FOUND;
        if (body->is_damaged && !costs_only)
            return;
        item->cost = (uint32_t)msg_cost(body->msg);
        if (costs_only)
            return;
        item->msg = msg_ref(body->msg);
        item->qos = want->qos;
        item->options = want->options;
        item->id_count = want->id_count;
        if (want->id_count) {
            item->ids = malloc(want->id_count * sizeof *item->ids);
            CHECK(item->ids);
            memcpy(item->ids, want->ids, want->id_count * sizeof *item->ids);
        }
    }
}

/* The positions of a run that the session still wants, as items. */
static uint32_t run_wanted(const struct memory_store *store, const struct store_run *run, struct store_read *read)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < run->count; i++)
        if (find_want(store, read->session, run->sequences[i]))
            read->items[count++] = (struct store_read_item){.sequence = run->sequences[i], .state = STORE_ITEM_ASKED};
    return count;
}

void memory_store_read(struct memory_store *store, struct store_read *read, uint32_t items_max)
{
    if (read->kind == STORE_READ_RUN) {
        const struct store_run *run = NULL;
        for (uint64_t from = read->run; (run = find_run(store, read->session, from)) != NULL; from = run->sequences[0] + 1)
            if ((read->count = run_wanted(store, run, read)) > 0)
                break;
        read->run = run ? run->sequences[0] : 0;
    }
    for (uint32_t i = 0; i < read->count && (items_max == 0 || i < items_max); i++)
        read_item(store, &read->items[i], read->session, read->costs_only);
}

bool memory_store_wants(const struct memory_store *store, uint64_t session, uint64_t sequence)
{
    return find_want(store, session, sequence) != NULL;
}

size_t memory_store_want_count(const struct memory_store *store, uint64_t session)
{
    size_t count = 0;
    for (size_t i = 0; i < store->want_count; i++)
        count += store->wants[i].session == session;
    return count;
}

size_t memory_store_run_count(const struct memory_store *store, uint64_t session)
{
    size_t count = 0;
    for (size_t i = 0; i < store->run_count; i++)
        count += store->runs[i].session == session && store->runs[i].is_committed && !store->runs[i].is_dropped;
    return count;
}

size_t memory_store_sent_count(const struct memory_store *store, uint64_t session)
{
    size_t count = 0;
    for (size_t i = 0; i < store->sent_count; i++)
        count += store->sents[i].session == session;
    return count;
}

void memory_store_damage(struct memory_store *store, uint64_t sequence)
{
    for (size_t i = 0; i < store->body_count; i++)
        if (store->bodies[i].sequence == sequence)
            store->bodies[i].is_damaged = true;
}

static bool is_in_run(const struct memory_store *store, uint64_t session, uint64_t sequence)
{
    for (size_t i = 0; i < store->run_count; i++)
        for (uint32_t k = 0; store->runs[i].session == session && store->runs[i].is_committed && k < store->runs[i].run->count; k++)
            if (store->runs[i].run->sequences[k] == sequence)
                return true;
    return false;
}

void memory_store_each_want(const struct memory_store *store, uint64_t session, memory_store_want_fn visit, void *arg)
{
    for (size_t i = 0; i < store->want_count; i++) {
        const struct want *want = &store->wants[i];
        for (size_t k = 0; want->session == session && k < store->body_count; k++)
            if (store->bodies[k].sequence == want->sequence)
                visit(arg, want->sequence, want->qos, (uint32_t)msg_cost(store->bodies[k].msg), is_in_run(store, session, want->sequence));
    }
}

uint64_t memory_store_run_last(const struct memory_store *store, uint64_t session)
{
    uint64_t last = 0;
    for (size_t i = 0; i < store->run_count; i++)
        if (store->runs[i].session == session && store->runs[i].is_committed) {
            uint64_t end = store->runs[i].run->sequences[store->runs[i].run->count - 1];
            last = end > last ? end : last;
        }
    return last;
}
