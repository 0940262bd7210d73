/* The checkpoint over a database in memory: each rule as a case of its own, then any stream of records against a model that is nothing but
 * arrays, with commits, failures and crashes in between. */
#include "broker/durable/checkpoint.h"
#include "broker/durable/checkpoint_row.h"

#include "broker/actor/msg.h"
#include "common/hash.h"
#include "common/position_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/sim_kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call) assert_int_equal((call), ERR_OK)
#define S(text) span_of_string(text)
#define BROKER 0x1122334455667788u
#define RANDOM_SEED 99u

/* --- bench: a checkpoint, its database, the next sequence ------------------------------------------------------------------------------
 */

struct bench {
    struct sim_kv *sim;
    struct kv *kv;
    struct checkpoint *checkpoint;
    uint64_t sequence; /* of the last record */
    struct errmsg msg;
};

static void bench_open(struct bench *b)
{
    b->kv = sim_kv_open(b->sim);
    OK(checkpoint_open(&b->checkpoint, b->kv, RANDOM_SEED, &b->msg));
}

static void bench_close(struct bench *b)
{
    checkpoint_free(b->checkpoint);
    kv_close(b->kv);
}

static void bench_crash(struct bench *b)
{
    sim_kv_crash(b->sim);
    bench_close(b);
    bench_open(b);
}

static int setup(void **state)
{
    struct bench *b = (struct bench *)calloc(1, sizeof *b);
    b->sim = sim_kv_new(7);
    bench_open(b);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_close(b);
    sim_kv_free(b->sim);
    free(b);
    return 0;
}

static struct log_cursor_value cursor_at(uint64_t next)
{
    return (struct log_cursor_value){.broker_id = BROKER, .position = {3, next}, .place = {5, next * 512}, .reopen = {4, next * 256}};
}

static enum err try_commit(struct bench *b)
{
    struct log_cursor_value cursor = cursor_at(b->sequence + 1);
    return checkpoint_commit(b->checkpoint, &cursor, &b->msg);
}

static void commit(struct bench *b) { OK(try_commit(b)); }

static uint64_t apply(struct bench *b, struct record rec)
{
    OK(checkpoint_apply(b->checkpoint, &rec, ++b->sequence));
    return b->sequence;
}

struct recipients {
    uint8_t bytes[65536];
    size_t size;
};

static struct span recipients_add(struct recipients *to, uint64_t session, uint8_t qos, struct span ids)
{
    struct record_recipient recipient = {.session = session, .qos = qos, .options = 8, .ids = ids};
    to->size += record_recipient_put(to->bytes + to->size, &recipient);
    return span_of(to->bytes, to->size);
}

static struct record publish_to(struct recipients *to, const uint64_t *sessions, size_t count)
{
    to->size = 0;
    for (size_t i = 0; i < count; i++)
        recipients_add(to, sessions[i], 1, span_of(NULL, 0));
    return (struct record){
        .type = RECORD_PUBLISH, .qos = 1, .topic = S("a/b"), .payload = S("hello"), .recipients = span_of(to->bytes, to->size)};
}

static uint64_t publish(struct bench *b, uint64_t first_session, size_t count)
{
    static struct recipients to;
    uint64_t sessions[2000];
    for (size_t i = 0; i < count; i++)
        sessions[i] = first_session + i;
    return apply(b, publish_to(&to, sessions, count));
}

static void retain(struct bench *b, const char *topic, const char *payload, uint64_t number)
{
    apply(b, (struct record){.type = RECORD_PUBLISH, .retain = true, .topic = S(topic), .payload = S(payload), .retained_number = number});
}

static void ack(struct bench *b, uint64_t session, uint64_t sequence)
{
    apply(b, (struct record){.type = RECORD_ACK, .session = session, .subject_sequence = sequence});
}

static void session(struct bench *b, uint64_t number, bool is_connected)
{
    apply(b, (struct record){.type = RECORD_SESSION,
                             .session = number,
                             .client_id = S("client"),
                             .received_ns = 5000,
                             .options = 60 | (is_connected ? RECORD_SESSION_CONNECTED : 0) | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT});
}

static uint64_t take_number(struct span *rest)
{
    uint64_t number = 0;
    size_t used = varint_get(&number, rest->data, rest->data + rest->size);
    assert_true(used > 0);
    *rest = span_of(rest->data + used, rest->size - used);
    return number;
}

/* Messages in a row, as docs/formats.md has it. */
static uint64_t row_messages(enum kv_tree tree, struct span key, struct span value)
{
    uint64_t count = 0, sequence = kv_key_read_u64(key.data);
    for (; value.size > 0; count++) {
        uint64_t step = take_number(&value);
        assert_true(step > 0 || count == 0);
        sequence += step;
        assert_true(sequence > 0);
        if (tree == KV_RECIPIENTS)
            take_number(&value);
        size_t size = tree == KV_RECIPIENTS ? take_number(&value) : load_le32(value.data);
        assert_in_range(size, 1, value.size);
        value = span_of(value.data + size, value.size - size);
    }
    assert_true(count > 0);
    return count;
}

static uint64_t rows(struct bench *b, enum kv_tree tree)
{
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    return stats.entries[tree];
}

/* What a tree has: bodies, chunks, or values. */
static uint64_t entries(struct bench *b, enum kv_tree tree)
{
    struct kv_txn *txn;
    struct span key, value;
    uint64_t count = 0;
    if (tree != KV_BODIES && tree != KV_RECIPIENTS)
        return rows(b, tree);
    OK(kv_begin(b->kv, &txn, false));
    enum err err = kv_seek(txn, tree, span_of(NULL, 0), &key, &value);
    for (; !err; err = kv_next(txn, tree, &key, &value))
        count += row_messages(tree, key, value);
    assert_int_equal(err, ERR_NOTFOUND);
    kv_abort(txn);
    return count;
}

static enum err find_want(struct bench *b, uint64_t number, uint64_t sequence)
{
    struct kv_txn *txn;
    struct checkpoint_want want;
    OK(kv_begin(b->kv, &txn, false));
    enum err err = checkpoint_find_want(txn, &want, number, sequence);
    kv_abort(txn);
    return err;
}

static uint64_t stat(const struct counter *counter) { return counter_get(counter); }
#define STAT(b, name) stat(&checkpoint_get_stats((b)->checkpoint)->name)

/* What a load gave, as text: a line for each call. */
struct loaded {
    char text[8192];
    size_t size;
    const uint64_t *known; /* sessions that wants are taken for, ends with 0 */
    bool refuse_retained;
    int corrupt;
};

__attribute__((format(printf, 2, 3))) static void say(struct loaded *loaded, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    loaded->size += (size_t)vsnprintf(loaded->text + loaded->size, sizeof loaded->text - loaded->size, format, args);
    va_end(args);
    assert_true(loaded->size < sizeof loaded->text);
}

static enum err say_session(void *arg, const struct checkpoint_session *sess)
{
    struct loaded *loaded = (struct loaded *)arg;
    say(loaded, "session %d %.*s expiry %u %s %lld v%u", (int)sess->number, (int)sess->client_id.size, (const char *)sess->client_id.data,
        sess->expiry_interval_s, sess->was_connected ? "connected" : "away", (long long)sess->since_wall_ns, sess->protocol);
    struct span rest = sess->subscriptions, bytes;
    struct record rec;
    while (record_next(&bytes, &rest) == ERR_OK) {
        OK(record_decode(&rec, bytes));
        say(loaded, " sub %.*s=%llu", (int)rec.topic.size, (const char *)rec.topic.data, (unsigned long long)rec.options);
    }
    if (sess->will.size) {
        OK(record_decode(&rec, sess->will));
        say(loaded, " will %.*s", (int)rec.topic.size, (const char *)rec.topic.data);
    }
    for (uint32_t i = 0; i < sess->inbound_count; i++)
        say(loaded, " in %u", sess->inbound_ids[i]);
    for (uint32_t i = 0; i < sess->sent_count; i++)
        say(loaded, " %s %u:%d", sess->sent[i].is_received ? "received" : "sent", sess->sent[i].packet_id, (int)sess->sent[i].sequence);
    say(loaded, "\n");
    return ERR_OK;
}

static enum err say_runs(void *arg, uint64_t number, uint64_t last)
{
    say((struct loaded *)arg, "runs %d to %d\n", (int)number, (int)last);
    return ERR_OK;
}

static enum err say_want(void *arg, uint64_t number, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct loaded *loaded = (struct loaded *)arg;
    bool is_known = !loaded->known;
    for (const uint64_t *known = loaded->known; known && *known; known++)
        is_known = is_known || *known == number;
    if (!is_known)
        return ERR_NOTFOUND;
    say(loaded, "want %d of %d qos %u cost %d%s\n", (int)number, (int)sequence, want->qos, (int)(cost - sizeof(struct msg)),
        is_in_run ? " run" : "");
    return ERR_OK;
}

static enum err say_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    struct loaded *loaded = (struct loaded *)arg;
    if (loaded->refuse_retained)
        return ERR_NOTFOUND;
    say(loaded, "retained %.*s number %d of %d cost %d expiry %d\n", (int)topic.size, (const char *)topic.data, (int)number, (int)sequence,
        (int)(cost - sizeof(struct msg)), (int)expiry);
    return ERR_OK;
}

static void say_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)tree;
    (void)key;
    ((struct loaded *)arg)->corrupt++;
}

static enum err try_load(struct bench *b, struct loaded *loaded)
{
    struct checkpoint_loader loader = {say_session, say_runs, say_want, say_retained, say_corrupt, loaded, NULL};
    return checkpoint_load(b->checkpoint, &loader, &b->msg);
}

#define NOBODY ((const uint64_t[]){0})

/* Commit, die, load: the text must be as expected. */
static void assert_loads(struct bench *b, const uint64_t *known, const char *expected)
{
    commit(b);
    bench_crash(b);
    struct loaded loaded = {.known = known};
    OK(try_load(b, &loaded));
    assert_string_equal(loaded.text, expected);
    assert_int_equal(loaded.corrupt, 0);
}

/* --- messages ------------------------------------------------------------------------------------------------------------------------ */

static void a_new_database_gets_format_and_position_with_the_first_commit(void **state)
{
    struct bench *b = (struct bench *)*state;
    assert_int_equal(checkpoint_state(b->checkpoint).broker_id, 0);
    assert_int_equal(entries(b, KV_META), 0);
    b->sequence = 41;
    commit(b);
    bench_crash(b);
    struct checkpoint_state at = checkpoint_state(b->checkpoint);
    struct log_cursor_value cursor = cursor_at(42);
    assert_true(at.broker_id == BROKER);
    assert_int_equal(log_cursor_compare(&at.cursor, &cursor), 0);
    assert_int_equal(at.cursor.position.epoch, 3);
    assert_int_equal(at.cursor.place.offset, 42 * 512);
    assert_int_equal(at.cursor.reopen.generation, 4);
}

static void another_format_is_refused_and_one_without_position_is_corrupt(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t format[16] = {0};
    struct checkpoint *other;
    struct kv_txn *txn;
    for (uint8_t number = 0; number <= CHECKPOINT_FORMAT + 1; number++) {
        format[0] = number;
        OK(kv_begin(b->kv, &txn, true));
        OK(kv_put(txn, KV_META, S("format"), span_of(format, 16)));
        OK(kv_commit(txn));
        assert_int_equal(checkpoint_open(&other, b->kv, 1, &b->msg),
                         number == 0 || number == CHECKPOINT_FORMAT ? ERR_CORRUPT : ERR_VERSION);
    }
}

static void values_without_a_format_are_corrupt(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct checkpoint *other;
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_put(txn, KV_BODIES, S("12345678"), S("x")));
    OK(kv_commit(txn));
    assert_int_equal(checkpoint_open(&other, b->kv, 1, &b->msg), ERR_CORRUPT);
}

static void what_all_acknowledge_within_a_delta_is_never_written(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequence = publish(b, 10, 1000);
    for (uint64_t number = 1009; number >= 10; number--)
        ack(b, number, sequence);
    assert_int_equal(STAT(b, never_written), 1);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 0);
    assert_int_equal(entries(b, KV_RECIPIENTS), 0);
    assert_int_equal(checkpoint_delta_bytes(b->checkpoint), 0);
}

/* Messages of an online subscriber come and go between two commits: they take the room of a few, however many they are. */
static void what_comes_and_goes_takes_no_room(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t kept = publish(b, 1, 1), before = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t sequence = publish(b, 1, 1);
        if (before)
            ack(b, 1, before);
        before = sequence;
        assert_true(checkpoint_delta_bytes(b->checkpoint) < (size_t)400 << 10);
    }
    assert_int_equal(STAT(b, never_written), 19999);
    commit(b);
    OK(find_want(b, 1, kept));
    OK(find_want(b, 1, before));
    assert_int_equal(entries(b, KV_BODIES), 2);
}

static void a_body_stays_as_long_as_somebody_wants_it(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequence = publish(b, 1, 600); /* three chunks */
    commit(b);
    assert_int_equal(entries(b, KV_RECIPIENTS), 3);
    assert_int_equal(entries(b, KV_HOLDERS), 1);
    for (uint64_t number = 1; number <= 600; number++) {
        ack(b, number, sequence);
        if (number % 50 == 0 || number > 597)
            commit(b);
        if (number % 50 == 0) {
            assert_int_equal(find_want(b, number, sequence), ERR_NOTFOUND);
            assert_int_equal(find_want(b, number + 1, sequence), number < 600 ? ERR_OK : ERR_NOTFOUND);
        }
        assert_int_equal(entries(b, KV_BODIES), number < 600);
    }
    assert_int_equal(entries(b, KV_RECIPIENTS), 0);
    assert_int_equal(entries(b, KV_HOLDERS), 0);
}

static void wants_end_in_any_order_over_several_chunks(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    for (int round = 0; round < 30; round++) {
        uint64_t order[1200], first = (uint64_t)round * 5000 + 1;
        size_t count = 1 + check_random_below(&random, 1200);
        bool is_retained = check_random_chance(&random, 1, 2);
        for (size_t i = 0; i < count; i++)
            order[i] = first + 2 * i;
        static struct recipients to;
        check_random_shuffle(&random, order, count, sizeof *order);
        struct record rec = publish_to(&to, order, count);
        rec.retained_number = is_retained ? (uint64_t)round + 1 : 0;
        uint64_t sequence = apply(b, rec);
        check_random_shuffle(&random, order, count, sizeof *order);
        for (size_t i = 0; i < count; i++) {
            ack(b, order[i], sequence);
            ack(b, order[i] + 1, sequence); /* nobody */
            if (check_random_chance(&random, 1, 40)) {
                commit(b);
                for (size_t k = 0; k < count; k += 1 + count / 50)
                    assert_int_equal(find_want(b, order[k], sequence), k <= i ? ERR_NOTFOUND : ERR_OK);
            }
        }
        commit(b);
        assert_int_equal(entries(b, KV_RECIPIENTS), 0);
        assert_int_equal(entries(b, KV_BODIES), is_retained);
        assert_int_equal(entries(b, KV_HOLDERS), 0);
        if (is_retained)
            retain(b, "a/b", "", (uint64_t)round + 1000000);
        checkpoint_forget_removals(b->checkpoint, UINT64_MAX);
        commit(b);
        assert_int_equal(entries(b, KV_BODIES), 0);
        assert_int_equal(entries(b, KV_RETAINED), 0);
        struct checkpoint_state at = checkpoint_state(b->checkpoint);
        assert_int_equal(at.retained_count, 0);
        /* Numbers of retained values go on with the next round: what is stored of them is gone. */
    }
}

static void a_session_that_comes_twice_wants_it_once_at_the_greater_qos(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct recipients to;
    uint8_t five = 5;
    to.size = 0;
    recipients_add(&to, 8, 1, span_of(NULL, 0));
    recipients_add(&to, 7, 0, span_of(NULL, 0));
    struct span all = recipients_add(&to, 7, 2, span_of(&five, 1));
    uint64_t sequence = apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .topic = S("t"), .payload = S("p"), .recipients = all});
    commit(b);
    struct kv_txn *txn;
    struct checkpoint_want want;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_want(txn, &want, 7, sequence));
    assert_int_equal(want.qos, 2);
    assert_int_equal(want.options, 8);
    assert_true(span_equal(want.ids, span_of(&five, 1)));
    struct record rec;
    OK(checkpoint_find_body(txn, &rec, sequence));
    assert_true(span_equal(rec.payload, S("p")));
    assert_int_equal(rec.recipients.size, 0);
    assert_int_equal(checkpoint_find_body(txn, &rec, sequence + 1), ERR_NOTFOUND);
    kv_abort(txn);
    ack(b, 7, sequence);
    commit(b);
    assert_int_equal(find_want(b, 7, sequence), ERR_NOTFOUND);
    assert_int_equal(find_want(b, 8, sequence), ERR_OK);
}

static void a_record_below_the_position_changes_nothing(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct recipients to;
    uint64_t one = 1;
    struct record rec = publish_to(&to, &one, 1);
    b->sequence = 100;
    commit(b);
    OK(checkpoint_apply(b->checkpoint, &rec, 100));
    assert_int_equal(STAT(b, applied), 0);
    OK(checkpoint_apply(b->checkpoint, &rec, 101));
    OK(checkpoint_apply(b->checkpoint, &rec, 101));
    assert_int_equal(STAT(b, applied), 1);
}

static void records_that_no_broker_writes_change_nothing(void **state)
{
    struct bench *b = (struct bench *)*state;
    static const uint8_t half[] = {0x80};
    static const uint8_t nobody[] = {0, 1, 0, 0};
    struct record bad[] = {
        {.type = RECORD_PUBLISH, .recipients = span_of(half, 1), .topic = S("t"), .retained_number = 4, .payload = S("p")},
        {.type = RECORD_PUBLISH, .recipients = span_of(nobody, 4), .topic = S("t")},
        {.type = RECORD_PUBLISH, .retained_number = 4, .payload = S("p")},
        {.type = RECORD_SESSION},
        {.type = RECORD_SUBSCRIPTION, .session = 1},
        {.type = RECORD_DROP, .session = 1, .positions = span_of(half, 1)},
        {.type = RECORD_SENT, .session = 1, .subject_sequence = 1},
        {.type = RECORD_RELEASED, .session = 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(checkpoint_apply(b->checkpoint, &bad[i], 10 + i), ERR_CORRUPT);
    b->sequence = 100;
    assert_loads(b, NULL, "");
}

static void unknown_types_are_passed_over(void **state)
{
    struct bench *b = (struct bench *)*state;
    apply(b, (struct record){.type = 99, .session = 1});
    apply(b, (struct record){.type = RECORD_DEVICE, .session = 1});
    assert_loads(b, NULL, "");
}

/* --- sessions ------------------------------------------------------------------------------------------------------------------------ */

#define OWED RECORD_SUBSCRIPTION_OWED

static void a_subscription_is_owed_values_until_they_are_given(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 1 | OWED});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 1 | OWED});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 1});
    commit(b);
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 2 | 1 << 4}); /* nothing more: owed */
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 2});          /* all anew: none there */
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 2 | 2 << 4});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a=68719476754 sub b=2 sub c=34\n");
    apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S("a")});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 2 | 1 << 4});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("d"), .options = 2 | OWED});
    commit(b);
    apply(b, (struct record){.type = RECORD_RETAINED_GIVEN, .session = 8});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("e"), .options = 2 | OWED});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a=18 sub b=2 sub c=34 sub d=68719476738 sub e=68719476738\n");
    apply(b, (struct record){.type = RECORD_RETAINED_GIVEN, .session = 7});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a=18 sub b=2 sub c=34 sub d=2 sub e=2\n");
}

static void a_session_comes_back_as_it_was(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 1});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 2});
    commit(b);
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 0x102});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 0});
    apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S("b")});
    apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 9, .topic = S("t"), .payload = S("p")});
    apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 3, .topic = S("t"), .payload = S("p")});
    apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 8, .packet_id = 3, .topic = S("t"), .payload = S("p")});
    apply(b, (struct record){.type = RECORD_RELEASED, .session = 7, .packet_id = 9});
    uint64_t sequence = publish(b, 7, 1);
    apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    assert_loads(b, NULL,
                 "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 will gone in 3 sent 5:12\n"
                 "want 7 of 12 qos 1 cost 8\n");
    apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 will gone in 3 received 5:12\n");
    assert_int_equal(entries(b, KV_BODIES), 0);
    apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    session(b, 7, false);
    assert_loads(b, NULL, "session 7 client expiry 60 away 5000 v5 sub a/#=258 sub c=0 will gone in 3\n");
    session(b, 7, true); /* resumed: no will until it says so */
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 in 3\n");
}

static void a_will_goes_when_it_is_published_or_discarded(void **state)
{
    struct bench *b = (struct bench *)*state;
    for (int way = 0; way < 2; way++) {
        session(b, 7, true);
        apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x")});
        assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 will gone\n");
        if (way == 0)
            apply(b, (struct record){.type = RECORD_WILL_DELETE, .session = 7});
        else
            apply(b, (struct record){.type = RECORD_PUBLISH, .session = 7, .will_session = 7, .topic = S("gone"), .payload = S("x")});
        assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5\n");
    }
}

/* Its size makes a commit due, so a will that goes must not make it huge. */
static void the_delta_shrinks_with_what_goes(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, false);
    size_t before = checkpoint_delta_bytes(b->checkpoint);
    apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("will"), .payload = S("a last word")});
    assert_true(checkpoint_delta_bytes(b->checkpoint) > before);
    apply(b, (struct record){.type = RECORD_WILL_DELETE, .session = 7});
    assert_int_equal(checkpoint_delta_bytes(b->checkpoint), before);
    apply(b, (struct record){.type = RECORD_SESSION, .session = 7, .client_id = S("client")}); /* a shorter one */
    assert_true(checkpoint_delta_bytes(b->checkpoint) < before);
}

static void a_session_value_is_written_only_when_it_differs(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    commit(b);
    uint64_t puts = sim_kv_counts(b->sim).puts;
    session(b, 7, true);
    apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 9, .topic = S("t"), .payload = S("p")});
    apply(b, (struct record){.type = RECORD_RELEASED, .session = 7, .packet_id = 9});
    commit(b);
    assert_int_equal(sim_kv_counts(b->sim).puts, puts + 1); /* the position */
    assert_int_equal(checkpoint_state(b->checkpoint).session_count, 1);
}

static void thousands_of_filters_of_one_session(void **state)
{
    struct bench *b = (struct bench *)*state;
    char filter[40];
    session(b, 7, true);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 20000; i++) {
            snprintf(filter, sizeof filter, "plant/%d/+", i);
            apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S(filter), .options = 1});
        }
        commit(b);
        for (int i = 1; i < 20000; i++) {
            snprintf(filter, sizeof filter, "plant/%d/+", i);
            apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S(filter)});
        }
    }
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub plant/0/+=1\n");
}

static void names_of_the_greatest_length_are_kept(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t *name = (uint8_t *)malloc(65535);
    memset(name, 'n', 65535);
    struct span longest = span_of(name, 65535);
    apply(b, (struct record){.type = RECORD_SESSION, .session = 7, .client_id = longest});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = longest, .options = 1});
    apply(b, (struct record){.type = RECORD_PUBLISH, .topic = longest, .payload = S("p"), .retained_number = 1});
    commit(b);
    name[65534] = 'm';
    apply(b, (struct record){.type = RECORD_PUBLISH, .topic = longest, .payload = S("p"), .retained_number = 2});
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 2);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 2);
    free(name);
}

static void many_identifiers_of_outgoing_qos_2_keep_their_order(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    for (uint16_t id = 1; id <= 200; id++)
        apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = id, .subject_sequence = id});
    commit(b);
    for (uint16_t id = 1; id <= 200; id++)
        if (id % 50 != 0)
            apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = id, .subject_sequence = id});
    apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 50, .subject_sequence = 7000});
    apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 150, .subject_sequence = 150});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sent 100:100 received 150:150 sent 200:200 sent 50:7000\n");
}

static void an_identifier_is_in_use_also_for_a_message_without_a_name(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 1});
    apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 2});
    commit(b);
    apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 2});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sent 1:0 received 2:0\n");
    apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = 1});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 received 2:0\n");
}

static void a_session_that_ended_takes_its_runs_along(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[64];
    session(b, 1, false);
    session(b, 2, false);
    for (int i = 0; i < 64; i++)
        sequences[i] = publish(b, 1, i % 2 ? 1 : 2);
    commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 32));
    OK(checkpoint_put_run(b->checkpoint, 1, sequences + 32, 32));
    commit(b);
    assert_int_equal(entries(b, KV_RUNS), 2);
    apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    uint64_t late = publish(b, 1, 2); /* was matched before the end */
    assert_int_equal(STAT(b, dropped_deleted), 1);
    commit(b);
    assert_false(checkpoint_has_more(b->checkpoint));
    assert_int_equal(entries(b, KV_RUNS), 0);
    assert_int_equal(entries(b, KV_SESSIONS), 1);
    assert_int_equal(entries(b, KV_BODIES), 33);
    assert_int_equal(find_want(b, 1, late), ERR_NOTFOUND);
    OK(find_want(b, 2, late));
    /* A run that was on its way. */
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 2));
    commit(b);
    assert_int_equal(entries(b, KV_RUNS), 0);
}

static void a_long_queue_goes_over_several_commits_or_with_the_load(void **state)
{
    struct bench *b = (struct bench *)*state;
    enum { COUNT = 2 * CHECKPOINT_JOB_WANTS + 64 };
    uint64_t *sequences = (uint64_t *)malloc(COUNT * sizeof *sequences);
    for (int way = 0; way < 2; way++) {
        session(b, 1, false);
        for (int i = 0; i < COUNT; i++)
            sequences[i] = publish(b, 1, 1);
        commit(b);
        for (int i = 0; i < COUNT; i += 32)
            OK(checkpoint_put_run(b->checkpoint, 1, sequences + i, 32));
        commit(b);
        apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
        commit(b);
        assert_true(checkpoint_has_more(b->checkpoint));
        assert_int_equal(entries(b, KV_BODIES), COUNT - CHECKPOINT_JOB_WANTS);
        if (way == 0) {
            commit(b);
            commit(b);
            assert_false(checkpoint_has_more(b->checkpoint));
        } else {
            assert_loads(b, NOBODY, "");
        }
        assert_int_equal(entries(b, KV_BODIES), 0);
        assert_int_equal(entries(b, KV_RUNS), 0);
        assert_int_equal(entries(b, KV_RECIPIENTS), 0);
        bench_crash(b);
        for (enum kv_tree tree = KV_SESSIONS; tree < KV_TREE_COUNT; tree++)
            assert_int_equal(entries(b, tree), 0);
        bench_close(b); /* numbers are never used again: a database of its own for the other way */
        sim_kv_free(b->sim);
        b->sim = sim_kv_new(8);
        b->sequence = 0;
        bench_open(b);
    }
    free(sequences);
}

/* --- retained values ----------------------------------------------------------------------------------------------------------------- */

static void the_greater_number_is_retained_whatever_comes_first(void **state)
{
    struct bench *b = (struct bench *)*state;
    for (int committed = 0; committed < 2; committed++) {
        uint64_t base = committed ? 100 : 0;
        retain(b, "t", "new", base + 5);
        uint64_t kept = b->sequence;
        if (committed)
            commit(b);
        retain(b, "t", "old", base + 4);
        char expected[100];
        snprintf(expected, sizeof expected, "retained t number %d of %d cost 4 expiry 0\n", (int)base + 5, (int)kept);
        assert_loads(b, NULL, expected);
        assert_int_equal(entries(b, KV_BODIES), 1);
        assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, base + 5);
    }
}

static void a_will_that_is_owed_goes_to_a_session_of_its_own(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 7, true);
    apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    commit(b);
    session(b, 9, false);
    apply(b, (struct record){.type = RECORD_WILL, .session = 9, .will_session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("next"), .payload = S("x"), .qos = 1});
    assert_loads(b, NULL,
                 "session 7 client expiry 60 connected 5000 v5 will next\n"
                 "session 9 client expiry 60 away 5000 v5 will gone\n");
    apply(b, (struct record){.type = RECORD_PUBLISH, .will_session = 9, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 9});
    assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 will next\n");
}

static void expire(struct bench *b, const char *topic, uint64_t number)
{
    OK(checkpoint_expire_retained(b->checkpoint, span_of_string(topic), number));
}

/* Its removal is remembered as one that was published; who wants the message still gets it. */
static void an_expired_value_is_removed(void **state)
{
    struct bench *b = (struct bench *)*state;
    retain(b, "t", "short", 5);
    retain(b, "u", "long", 6);
    commit(b);
    expire(b, "t", 4);
    expire(b, "none", 5);
    expire(b, "u", 5); /* replaced meanwhile */
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 2);
    expire(b, "t", 5);
    expire(b, "t", 5);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 1);
    assert_int_equal(entries(b, KV_RETAINED), 2);
    retain(b, "t", "older", 3);
    checkpoint_forget_removals(b->checkpoint, 7);
    commit(b);
    assert_int_equal(counter_get(&checkpoint_get_stats(b->checkpoint)->expired), 1);
    assert_int_equal(entries(b, KV_BODIES), 1);
    assert_int_equal(entries(b, KV_RETAINED), 1);
    assert_loads(b, NULL, "retained u number 6 of 2 cost 5 expiry 0\n");
}

static void a_removal_is_remembered_until_nothing_older_can_come(void **state)
{
    struct bench *b = (struct bench *)*state;
    retain(b, "t", "first", 1);
    commit(b);
    retain(b, "t", "", 7);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 0);
    assert_int_equal(entries(b, KV_RETAINED), 1);
    retain(b, "t", "late", 6);
    checkpoint_forget_removals(b->checkpoint, 7);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 0);
    assert_int_equal(entries(b, KV_RETAINED), 1);
    checkpoint_forget_removals(b->checkpoint, 8);
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 0);
    retain(b, "t", "", 9); /* of nothing */
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 1);
    assert_loads(b, NULL, "");
    assert_int_equal(entries(b, KV_RETAINED), 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, 9);
}

static void a_message_that_is_queued_and_retained_has_two_holders(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct recipients to;
    for (uint64_t way = 0; way < 4; way++) {
        uint64_t one = 1;
        struct record rec = publish_to(&to, &one, 1);
        rec.retained_number = 10 * way + 1;
        uint64_t sequence = apply(b, rec);
        if (way & 1)
            commit(b);
        if (way & 2)
            ack(b, 1, sequence);
        else
            retain(b, "a/b", "", 10 * way + 2);
        commit(b);
        assert_int_equal(entries(b, KV_BODIES), 1);
        assert_int_equal(entries(b, KV_HOLDERS), 0);
        if (way & 2)
            retain(b, "a/b", "", 10 * way + 2);
        else
            ack(b, 1, sequence);
        commit(b);
        assert_int_equal(entries(b, KV_BODIES), 0);
    }
}

static void an_expired_value_goes_when_the_load_refuses_it(void **state)
{
    struct bench *b = (struct bench *)*state;
    apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("p"), .retained_number = 1, .expiry_ns = 77});
    assert_loads(b, NULL, "retained t number 1 of 1 cost 2 expiry 77\n");
    bench_crash(b);
    struct loaded loaded = {.refuse_retained = true};
    OK(try_load(b, &loaded));
    assert_int_equal(entries(b, KV_RETAINED), 0);
    assert_int_equal(entries(b, KV_BODIES), 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 0);
}

/* Without space for it the value stays, and is counted until another takes its place. */
static void an_expired_value_that_cannot_go_is_counted(void **state)
{
    struct bench *b = (struct bench *)*state;
    apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("p"), .retained_number = 1, .expiry_ns = 77});
    commit(b);
    bench_crash(b);
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    struct loaded loaded = {.refuse_retained = true};
    OK(try_load(b, &loaded));
    assert_int_equal(entries(b, KV_RETAINED), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 1);
    apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("q"), .retained_number = 2});
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 1);
}

/* The place of a topic's value, as docs/formats.md has it. */
static struct span retained_key(uint8_t key_out[16], const char *topic, uint64_t slot)
{
    const char *volatile unseen = topic; /* with a literal's size in view gcc warns of what the hash does with longer ones */
    const char *bytes = unseen;
    XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, strlen(bytes), RANDOM_SEED);
    return kv_key_u64_u64(key_out, hash.high64, (hash.low64 & ~UINT64_C(7)) + slot);
}

/* A value of another topic under the keys of `topic`, as if their hashes were the same. */
static void put_other(struct bench *b, const char *topic, uint64_t slot, const char *other, uint64_t sequence)
{
    uint8_t key[16], value[64] = {0};
    struct kv_txn *txn;
    store_le64(value, 1);
    store_le64(value + 8, sequence);
    memcpy(value + 32, other, strlen(other));
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_put(txn, KV_RETAINED, retained_key(key, topic, slot), span_of(value, 32 + strlen(other))));
    static const uint8_t body[] = {0x00, 0x0b, 0x00, 0x00, 0x00, 0x01, 0x41, 0x01, 0x74, 0x49, 0x01, 0x78};
    OK(kv_put(txn, KV_BODIES, kv_key_u64(key, sequence), span_of(body, sizeof body)));
    OK(kv_commit(txn));
}

static void topics_whose_hashes_collide_stand_beside_each_other(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    commit(b);
    b->sequence = 10;
    put_other(b, "t", 0, "o1", 1);
    put_other(b, "t", 1, "o2", 2);
    retain(b, "t", "first", 1);
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 3);
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true)); /* a gap before it */
    OK(kv_del(txn, KV_RETAINED, retained_key(key, "t", 0)));
    OK(kv_del(txn, KV_BODIES, kv_key_u64(key, 1)));
    OK(kv_commit(txn));
    retain(b, "t", "second", 2);
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 2);
    assert_int_equal(entries(b, KV_BODIES), 2);
    retain(b, "t", "", 3);
    checkpoint_forget_removals(b->checkpoint, 4);
    commit(b);
    assert_int_equal(entries(b, KV_RETAINED), 1);
    assert_int_equal(entries(b, KV_BODIES), 1);
}

/* --- load ---------------------------------------------------------------------------------------------------------------------------- */

static void the_load_says_which_wants_stand_in_a_run(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 1, false);
    uint64_t s[8];
    for (int i = 0; i < 8; i++)
        s[i] = publish(b, 1, 1); /* 2..9 */
    commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[0], s[1]}, 2));
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[2], s[4]}, 2));
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[5]}, 1));
    ack(b, 1, s[0]);
    ack(b, 1, s[1]); /* consumed, and the crash comes before it is dropped */
    ack(b, 1, s[5]);
    assert_loads(b, NULL,
                 "session 1 client expiry 60 away 5000 v5\nruns 1 to 7\nwant 1 of 4 qos 1 cost 8 run\nwant 1 of 5 qos 1 cost 8\n"
                 "want 1 of 6 qos 1 cost 8 run\nwant 1 of 8 qos 1 cost 8\nwant 1 of 9 qos 1 cost 8\n");
    assert_int_equal(entries(b, KV_RUNS), 1);
    struct kv_txn *txn;
    uint64_t found[CHECKPOINT_RUN];
    uint32_t count;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_run(txn, found, &count, 1, 0));
    assert_int_equal(count, 2);
    assert_int_equal(found[1], s[4]);
    assert_int_equal(checkpoint_find_run(txn, found, &count, 1, s[2] + 1), ERR_NOTFOUND);
    assert_int_equal(checkpoint_find_run(txn, found, &count, 0, 0), ERR_NOTFOUND);
    kv_abort(txn);
    OK(checkpoint_drop_run(b->checkpoint, 1, s[2]));
    commit(b);
    assert_int_equal(entries(b, KV_RUNS), 0);
}

static void what_nobody_is_there_for_is_removed(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 2, false);
    for (int i = 0; i < 20000; i++)
        publish(b, 1, i == 9999 ? 2 : 1);
    commit(b);
    assert_loads(b, (const uint64_t[]){2, 0}, "session 2 client expiry 60 away 5000 v5\nwant 2 of 10001 qos 1 cost 8\n");
    assert_int_equal(entries(b, KV_BODIES), 1);
    assert_int_equal(entries(b, KV_RECIPIENTS), 1);
}

static void bodies_and_counts_that_damage_left_behind_are_put_right(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16], two[4] = {2};
    publish(b, 1, 1);
    uint64_t wide = publish(b, 1, 300), lost = publish(b, 500, CHECKPOINT_ROW_WANTS + 1);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 3);
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_del(txn, KV_RECIPIENTS, kv_key_u64_u64(key, lost, 500)));
    OK(kv_put(txn, KV_HOLDERS, kv_key_u64(key, lost), span_of(two, 4)));
    OK(kv_put(txn, KV_HOLDERS, kv_key_u64(key, 1), span_of(two, 4)));
    OK(kv_del(txn, KV_HOLDERS, kv_key_u64(key, wide)));
    OK(kv_commit(txn));
    bench_crash(b);
    struct loaded *loaded = (struct loaded *)calloc(1, sizeof *loaded);
    loaded->known = (const uint64_t[]){1, 0};
    OK(try_load(b, loaded));
    assert_string_equal(loaded->text, "want 1 of 1 qos 1 cost 8\nwant 1 of 2 qos 1 cost 8\n");
    free(loaded);
    assert_int_equal(entries(b, KV_BODIES), 2);
    assert_int_equal(entries(b, KV_HOLDERS), 0);
    ack(b, 1, 1);
    ack(b, 1, wide);
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 0);
}

static void damaged_values_are_left_out_and_told(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    session(b, 1, false);
    session(b, 2, false);
    uint64_t s1 = publish(b, 1, 2);
    uint64_t s2 = publish(b, 2, 1);
    retain(b, "t", "p", 1);
    retain(b, "u", "p", 2);
    commit(b);
    OK(checkpoint_put_run(b->checkpoint, 2, &s1, 1));
    OK(checkpoint_put_run(b->checkpoint, 2, &s2, 1));
    commit(b);
    assert_true(sim_kv_flip(b->sim, KV_SESSIONS, kv_key_u64(key, 1), 0));
    assert_true(sim_kv_flip(b->sim, KV_RUNS, kv_key_u64_u64(key, 2, s1), 0));
    assert_true(sim_kv_flip(b->sim, KV_RETAINED, retained_key(key, "t", 0), 0));
    bench_crash(b);
    struct loaded loaded = {.known = (const uint64_t[]){2, 0}};
    OK(try_load(b, &loaded));
    assert_string_equal(loaded.text, "session 2 client expiry 60 away 5000 v5\nruns 2 to 4\nwant 2 of 3 qos 1 cost 8\n"
                                     "want 2 of 4 qos 1 cost 8 run\nretained u number 2 of 6 cost 2 expiry 0\n");
    assert_int_equal(loaded.corrupt, 3);
    assert_int_equal(STAT(b, corrupt), 3);
    assert_true(sim_kv_flip(b->sim, KV_RECIPIENTS, kv_key_u64_u64(key, s1, 1), 0)); /* the row of both */
    bench_crash(b);
    struct loaded again = {.known = (const uint64_t[]){2, 0}};
    OK(try_load(b, &again));
    assert_int_equal(again.corrupt, 3); /* session, retained value, chunk */
    assert_int_equal(entries(b, KV_BODIES), 4);
    session(b, 1, true); /* is made anew */
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 1, .topic = S("f"), .options = 1});
    retain(b, "t", "q", 3);
    ack(b, 2, s2);
    commit(b);
    assert_int_equal(find_want(b, 2, s2), ERR_CORRUPT);
}

static void a_callback_that_fails_ends_the_load(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 1, false);
    publish(b, 1, 1);
    commit(b);
    for (uint64_t skip = 0; skip < 6; skip++) {
        sim_kv_fail(b->sim, SIM_KV_READ, ERR_IO, skip);
        struct loaded loaded = {0};
        assert_int_equal(try_load(b, &loaded), ERR_IO);
    }
    sim_kv_fail(b->sim, SIM_KV_READ, ERR_OK, 0);
    struct loaded loaded = {0};
    OK(try_load(b, &loaded));
}

static void a_commit_without_space_keeps_the_delta(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 1, false);
    uint64_t sequence = publish(b, 1, 300);
    for (int way = 0; way < 3; way++) {
        if (way == 0)
            sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        else if (way == 1)
            sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 2);
        else
            sim_kv_set_capacity(b->sim, 100);
        assert_int_equal(try_commit(b), ERR_NOSPACE);
        assert_int_equal(checkpoint_state(b->checkpoint).broker_id, 0);
        assert_true(checkpoint_delta_bytes(b->checkpoint) > 0);
    }
    assert_int_equal(STAT(b, commit_retries), 3);
    sim_kv_set_capacity(b->sim, 0);
    apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(try_commit(b), ERR_NOSPACE);
    commit(b);
    OK(find_want(b, 300, sequence));
    assert_int_equal(entries(b, KV_SESSIONS), 0);
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_IO, 0);
    assert_int_equal(try_commit(b), ERR_IO);
}

/* What a session left that ended in this very delta is found again by each try: it goes ahead, and is no reason to try for ever. */
static void removals_that_are_found_again_do_not_count(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[3];
    session(b, 1, false);
    for (int i = 0; i < 3; i++)
        sequences[i] = publish(b, 1, 1);
    commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 3));
    commit(b);
    apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    for (int i = 0; i < 3; i++) {
        sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        assert_int_equal(try_commit(b), ERR_NOSPACE);
    }
    assert_int_equal(STAT(b, removal_commits), 0);
    commit(b);
    assert_loads(b, NULL, "");
}

/* What the delta removes goes ahead of what does not fit; a crash then replays both from the position before. */
static void removals_go_ahead_of_what_does_not_fit(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[40];
    session(b, 1, false);
    for (int i = 0; i < 40; i++)
        sequences[i] = publish(b, 1, 1);
    commit(b);
    uint64_t before = checkpoint_state(b->checkpoint).cursor.position.sequence, used = sim_kv_counts(b->sim).used_bytes;
    sim_kv_set_capacity(b->sim, used + 1000);
    for (int i = 0; i < 30; i++)
        apply(b, (struct record){.type = RECORD_ACK, .session = 1, .subject_sequence = sequences[i]});
    size_t delta = checkpoint_delta_bytes(b->checkpoint);
    sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 0); /* of the position: all of it is undone */
    assert_int_equal(try_commit(b), ERR_NOSPACE);
    assert_int_equal(STAT(b, removal_commits), 1);
    assert_int_equal(entries(b, KV_BODIES), 10);
    assert_true(checkpoint_delta_bytes(b->checkpoint) < delta);
    assert_true(sim_kv_counts(b->sim).used_bytes < used);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, before);
    assert_int_equal(find_want(b, 1, sequences[0]), ERR_NOTFOUND);
    OK(find_want(b, 1, sequences[30]));
    commit(b);
    assert_int_equal(entries(b, KV_BODIES), 10);
    assert_true(checkpoint_state(b->checkpoint).cursor.position.sequence > before);
}

/* Other processes have all the slots of readers: the one writer goes on without. */
static void a_writer_needs_no_slot_of_a_reader(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 1, false);
    commit(b);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, 0);
    uint64_t sequence = publish(b, 1, 300);
    apply(b, (struct record){.type = RECORD_SESSION, .session = 1, .client_id = SPAN_LITERAL("x")});
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, 0);
    commit(b);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_OK, 0);
    OK(find_want(b, 300, sequence));
}

/* Nor does a start, whichever of its slices finds none. */
static void a_load_needs_no_slot_of_a_reader(void **state)
{
    struct bench *b = (struct bench *)*state;
    session(b, 1, false);
    (void)publish(b, 1, 300);
    commit(b);
    for (uint64_t skip = 0; skip < 12; skip++) {
        bench_crash(b);
        struct loaded loaded = {0};
        sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, skip);
        OK(try_load(b, &loaded));
        sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_OK, 0);
    }
}

static void assert_value(struct bench *b, enum kv_tree tree, struct span key, const uint8_t *expected, size_t size)
{
    struct kv_txn *txn;
    struct span value;
    OK(kv_begin(b->kv, &txn, false));
    OK(kv_get(txn, tree, key, &value));
    assert_int_equal(value.size, size);
    assert_memory_equal(value.data, expected, size);
    kv_abort(txn);
}

static void values_are_as_in_the_example_of_the_formats_document(void **state)
{
    struct bench *b = (struct bench *)*state;
    static const uint8_t session_value[] = {0x13, 0x00, 0x00, 0x00, 0x03, 0x02, 0xd0, 0x0f, 0x0e, 0xbc, 0x80, 0x80, 0x80, 0x90,
                                            0xa0, 0x01, 0x43, 0x01, 0x63, 0x0c, 0x00, 0x00, 0x00, 0x05, 0x0e, 0x01, 0x41, 0x03,
                                            0x61, 0x2f, 0x23, 0x09, 0x00, 0x00, 0x00, 0x0b, 0x04, 0x05, 0x0d, 0x2a};
    static const uint8_t chunk[] = {0x00, 0x05, 0x09, 0x07, 0x02, 0x01, 0x00, 0x09, 0x01, 0x00, 0x01, 0x05};
    static const uint8_t body[] = {0x00, 0x15, 0x00, 0x00, 0x00, 0x01, 0x01, 0x06, 0x02, 0xd0, 0x0f,
                                   0x05, 0x03, 0x41, 0x03, 0x61, 0x2f, 0x62, 0x49, 0x02, 0x68, 0x69};
    static const uint8_t holders[] = {0x02, 0x00, 0x00, 0x00};
    static const uint8_t run[] = {0x54, 0x02};
    static struct recipients to;
    uint8_t key[16], five = 5;
    apply(b, (struct record){.type = RECORD_SESSION,
                             .session = 7,
                             .client_id = S("c"),
                             .received_ns = 1000,
                             .options = 60 | RECORD_SESSION_CONNECTED | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT});
    apply(b, (struct record){.type = RECORD_SESSION, .session = 9});
    apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 1});
    to.size = 0;
    struct record_recipient seven = {.session = 7, .qos = 2, .options = 1}, nine = {.session = 9, .qos = 1, .ids = span_of(&five, 1)};
    to.size = record_recipient_put(to.bytes, &seven);
    to.size += record_recipient_put(to.bytes + to.size, &nine);
    b->sequence = 41;
    apply(b, (struct record){.type = RECORD_PUBLISH,
                             .qos = 2,
                             .retain = true,
                             .received_ns = 1000,
                             .retained_number = 3,
                             .topic = S("a/b"),
                             .payload = S("hi"),
                             .client_id = S("publisher"),
                             .recipients = span_of(to.bytes, to.size)});
    apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 5, .subject_sequence = 42});
    OK(checkpoint_put_run(b->checkpoint, 9, (const uint64_t[]){42, 43}, 2));
    commit(b);
    assert_value(b, KV_SESSIONS, kv_key_u64(key, 7), session_value, sizeof session_value);
    assert_value(b, KV_RECIPIENTS, kv_key_u64_u64(key, 42, 7), chunk, sizeof chunk);
    assert_value(b, KV_BODIES, kv_key_u64(key, 42), body, sizeof body);
    assert_value(b, KV_HOLDERS, kv_key_u64(key, 42), holders, sizeof holders);
    assert_value(b, KV_RUNS, kv_key_u64_u64(key, 9, 42), run, sizeof run);
}

/* --- rows ---------------------------------------------------------------------------------------------------------------------------- */

#define R_MESSAGES 600
#define R_SESSIONS 6

struct row_message {
    size_t size; /* of its payload */
    bool wants[R_SESSIONS];
};

static uint8_t row_payload(uint64_t sequence, size_t at) { return (uint8_t)(sequence * 31 + at); }

static uint64_t publish_sized(struct bench *b, struct check_random *random, struct row_message *message)
{
    static struct recipients to;
    static uint8_t payload[20000];
    to.size = 0;
    message->size = check_random_chance(random, 1, 8) ? check_random_below(random, sizeof payload) : check_random_below(random, 700);
    for (uint64_t i = 0; i < R_SESSIONS; i++) {
        message->wants[i] = i == 0 || check_random_chance(random, 1, 4);
        if (message->wants[i])
            recipients_add(&to, i + 1, 1, span_of(NULL, 0));
    }
    for (size_t i = 0; i < message->size; i++)
        payload[i] = row_payload(b->sequence + 1, i);
    return apply(b, (struct record){.type = RECORD_PUBLISH,
                                    .topic = S("t"),
                                    .payload = span_of(payload, message->size),
                                    .recipients = span_of(to.bytes, to.size)});
}

static uint64_t check_messages(struct bench *b, const struct row_message *messages, uint64_t count)
{
    struct kv_txn *txn;
    uint64_t wanted = 0;
    OK(kv_begin(b->kv, &txn, false));
    for (uint64_t sequence = 1; sequence <= count; sequence++) {
        struct checkpoint_want want;
        struct record rec;
        bool is_wanted = false;
        for (uint64_t i = 0; i < R_SESSIONS; i++) {
            assert_int_equal(checkpoint_find_want(txn, &want, i + 1, sequence), messages[sequence].wants[i] ? ERR_OK : ERR_NOTFOUND);
            is_wanted = is_wanted || messages[sequence].wants[i];
        }
        assert_int_equal(checkpoint_find_body(txn, &rec, sequence), is_wanted ? ERR_OK : ERR_NOTFOUND);
        wanted += is_wanted;
        if (!is_wanted)
            continue;
        assert_int_equal(rec.payload.size, messages[sequence].size);
        for (size_t i = 0; i < rec.payload.size; i++)
            assert_int_equal(rec.payload.data[i], row_payload(sequence, i));
    }
    kv_abort(txn);
    return wanted;
}

/* Small and large, acknowledged in any order, all at once and one by one. */
static void rows_give_up_what_ended_and_keep_the_rest(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    struct row_message *messages = (struct row_message *)calloc(R_MESSAGES + 1, sizeof *messages);
    uint64_t count = 0, sequence = 0;
    while (count < R_MESSAGES) {
        for (uint64_t i = check_random_below(&random, 200); i > 0 && count < R_MESSAGES; i--) {
            count = publish_sized(b, &random, &messages[b->sequence + 1]);
            if (b->sequence == R_MESSAGES)
                break;
        }
        commit(b);
        assert_int_equal(check_messages(b, messages, count), entries(b, KV_BODIES));
    }
    assert_in_range(rows(b, KV_RECIPIENTS), R_MESSAGES / CHECKPOINT_ROW_WANTS, R_MESSAGES / 8);
    assert_in_range(rows(b, KV_BODIES), R_MESSAGES / 16, R_MESSAGES / 2);
    for (int round = 0; entries(b, KV_BODIES) > 0; round++) {
        uint32_t share = 1 + (uint32_t)check_random_below(&random, 20);
        for (sequence = 1; sequence <= R_MESSAGES; sequence++) {
            for (uint64_t i = 0; i < R_SESSIONS; i++) {
                if (!check_random_chance(&random, 1, share) && round < 30)
                    continue;
                ack(b, i + 1, sequence); /* whether it wants it or not */
                messages[sequence].wants[i] = false;
            }
        }
        commit(b);
        uint64_t wanted = check_messages(b, messages, R_MESSAGES);
        assert_int_equal(wanted, entries(b, KV_BODIES));
        assert_int_equal(wanted, checkpoint_state(b->checkpoint).body_count);
    }
    assert_int_equal(rows(b, KV_RECIPIENTS), 0);
    assert_int_equal(rows(b, KV_BODIES), 0);
    free(messages);
}

/* A damaged row takes those along that stand in it, and nobody else; it stays where it is. */
static void a_damaged_row_of_bodies_is_one_row(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[8];
    uint64_t first = publish(b, 1, 1);
    publish(b, 1, 1);
    commit(b);
    uint64_t other = publish(b, 1, 1);
    commit(b);
    assert_int_equal(rows(b, KV_BODIES), 2);
    assert_true(sim_kv_flip(b->sim, KV_BODIES, kv_key_u64(key, first), 5));
    struct kv_txn *txn;
    struct record rec;
    OK(kv_begin(b->kv, &txn, false));
    assert_int_equal(checkpoint_find_body(txn, &rec, first), ERR_CORRUPT);
    assert_int_equal(checkpoint_find_body(txn, &rec, first + 1), ERR_CORRUPT);
    OK(checkpoint_find_body(txn, &rec, other));
    kv_abort(txn);
    for (uint64_t sequence = first; sequence <= other; sequence++)
        ack(b, 1, sequence);
    commit(b);
    assert_int_equal(STAT(b, corrupt), 2);
    assert_int_equal(rows(b, KV_RECIPIENTS), 0);
    assert_int_equal(rows(b, KV_BODIES), 1);
    bench_crash(b);
    struct loaded loaded = {0};
    OK(try_load(b, &loaded));
    assert_int_equal(rows(b, KV_BODIES), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
}

/* The last wants of a message end in a row that others have wants in, too; damage elsewhere makes the load look at every body. */
static void a_body_is_kept_for_wants_in_any_of_its_rows(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    uint64_t wanted = publish(b, 1, CHECKPOINT_CHUNK + 4);
    publish(b, 1000, 1);
    commit(b);
    uint64_t damaged = publish(b, 1, 1);
    publish(b, 1, 1);
    commit(b);
    assert_int_equal(rows(b, KV_RECIPIENTS), 3);
    for (uint64_t i = 1; i <= 4; i++)
        ack(b, CHECKPOINT_CHUNK + i, wanted);
    commit(b);
    assert_int_equal(rows(b, KV_RECIPIENTS), 3);
    bench_crash(b);
    assert_true(sim_kv_flip(b->sim, KV_RECIPIENTS, kv_key_u64_u64(key, damaged, 1), 1));
    struct loaded loaded = {.known = (const uint64_t[]){1, 1000, 0}};
    OK(try_load(b, &loaded));
    assert_int_equal(loaded.corrupt, 1);
    struct kv_txn *txn;
    struct record rec;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_body(txn, &rec, wanted));
    kv_abort(txn);
}

/* --- any stream against a model ------------------------------------------------------------------------------------------------------- */

#define M_SESSIONS 40
#define M_MESSAGES 3000
#define M_TOPICS 5
#define M_FILTERS 5
#define M_IDS 6
#define M_RUNS 40

struct m_session {
    bool exists, is_connected;
    uint32_t expiry;
    int64_t since;
    int filters[M_FILTERS]; /* options + 1; 0: not subscribed */
    int will;               /* 0: none */
    bool inbound[M_IDS];
    struct checkpoint_sent sent[M_IDS];
    int sent_count;
    struct m_run {
        uint64_t positions[CHECKPOINT_RUN];
        uint32_t count;
    } runs[M_RUNS];
    int run_count;
};

struct m_message {
    uint64_t sequence;
    int topic;
    uint32_t payload_size;
    uint64_t ids_seed;         /* for m_ids() */
    uint8_t wants[M_SESSIONS]; /* qos + 1; 0: no (more) */
};

struct m_record {
    struct span bytes; /* own block */
    uint64_t sequence;
};

struct world {
    struct bench b;
    struct check_random random;
    struct m_session sessions[M_SESSIONS];
    int session_count; /* made so far */
    struct m_message messages[M_MESSAGES];
    int message_count;
    struct {
        uint64_t number, sequence; /* sequence 0: none */
    } retained[M_TOPICS];
    uint64_t number, late[3]; /* retained numbers: the last, and those drawn that are still on their way */
    struct m_record *log;
    size_t log_count;
    uint64_t committed; /* the position */
    /* of the load that is being checked */
    bool seen_session[M_SESSIONS], seen_runs[M_SESSIONS];
    uint8_t seen_want[M_MESSAGES][M_SESSIONS];
    int seen_retained;
    struct m_run stored_runs[M_SESSIONS * M_RUNS];
    int stored_owner[M_SESSIONS * M_RUNS], stored_run_count;
};

static uint64_t draw(struct world *w, uint64_t below) { return check_random_below(&w->random, below); }
static uint64_t m_number(int i) { return 1000 + 3 * (uint64_t)i; }
static int m_index(uint64_t number) { return number >= 1000 && (number - 1000) % 3 == 0 ? (int)((number - 1000) / 3) : -1; }
static const char *m_topic(int i) { return &"aaaa\0b/b\0cc\0d/d/d\0e"[(const int[]){0, 5, 9, 12, 18}[i]]; }
/* Some have subscription identifiers. */
static struct span m_ids(uint64_t seed, int i, uint8_t ids_out[VARINT_SIZE_MAX])
{
    uint64_t id = (seed + (uint64_t)i) % 500;
    return span_of(ids_out, id % 3 == 0 ? varint_put(ids_out, 1 + id) : 0);
}

/* Into the log, and applied. */
static uint64_t emit(struct world *w, const struct record *rec)
{
    struct bench *b = &w->b;
    b->sequence += draw(w, 4) ? 1 : 1 + draw(w, 5); /* telemetry between */
    uint8_t *bytes = (uint8_t *)malloc(record_size(rec));
    w->log = (struct m_record *)realloc(w->log, (w->log_count + 1) * sizeof *w->log);
    w->log[w->log_count++] = (struct m_record){span_of(bytes, record_encode(bytes, rec)), b->sequence};
    struct record decoded;
    struct span encoded = w->log[w->log_count - 1].bytes;
    OK(record_decode(&decoded, encoded));
    OK(checkpoint_apply_encoded(b->checkpoint, &decoded, draw(w, 2) ? encoded : span_of(NULL, 0), b->sequence));
    return b->sequence;
}

static int pick_session(struct world *w)
{
    for (int tries = 0; tries < 10 && w->session_count > 0; tries++) {
        int i = (int)draw(w, (uint64_t)w->session_count);
        if (w->sessions[i].exists)
            return i;
    }
    return -1;
}

static void m_session_record(struct world *w)
{
    int i = pick_session(w);
    if ((i < 0 || draw(w, 3) == 0) && w->session_count < M_SESSIONS)
        i = w->session_count++;
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    sess->exists = true;
    sess->is_connected = draw(w, 2);
    sess->expiry = (uint32_t)draw(w, 1000);
    sess->since = (int64_t)draw(w, 1000000);
    if (sess->is_connected)
        sess->will = 0;
    char name[20];
    snprintf(name, sizeof name, "client-%d", i);
    emit(w, &(struct record){.type = RECORD_SESSION,
                             .session = m_number(i),
                             .client_id = S(name),
                             .received_ns = sess->since,
                             .options = sess->expiry | (sess->is_connected ? RECORD_SESSION_CONNECTED : 0) |
                                        UINT64_C(4) << RECORD_SESSION_PROTOCOL_SHIFT});
}

static struct m_message *m_find(struct world *w, uint64_t sequence)
{
    for (int i = 0; i < w->message_count; i++)
        if (w->messages[i].sequence == sequence)
            return &w->messages[i];
    return NULL;
}

static bool m_is_in_run(const struct m_session *sess, uint64_t sequence)
{
    for (int r = 0; r < sess->run_count; r++)
        for (uint32_t k = 0; k < sess->runs[r].count; k++)
            if (sess->runs[r].positions[k] == sequence)
                return true;
    return false;
}

/* Names what is in no run, as a home does; or forgets to. */
static void m_delete_record(struct world *w)
{
    int i = pick_session(w);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    uint8_t positions[M_MESSAGES * VARINT_SIZE_MAX];
    size_t size = 0;
    uint64_t last = 0;
    bool is_named = draw(w, 4) != 0;
    for (int m = 0; m < w->message_count; m++) {
        if (w->messages[m].wants[i] && is_named && !m_is_in_run(sess, w->messages[m].sequence))
            size += position_list_put(positions + size, &last, w->messages[m].sequence);
        w->messages[m].wants[i] = 0;
    }
    if (size > 0)
        emit(w, &(struct record){.type = RECORD_DROP, .session = m_number(i), .positions = span_of(positions, size)});
    emit(w, &(struct record){.type = RECORD_SESSION_DELETE, .session = m_number(i)});
    memset(sess, 0, sizeof *sess);
}

/* A number of its own for each; some come late. */
static uint64_t draw_number(struct world *w)
{
    uint64_t number = ++w->number;
    uint64_t *late = &w->late[draw(w, 3)];
    if (draw(w, 2)) {
        uint64_t other = *late;
        *late = number;
        number = other ? other : ++w->number;
    }
    return number;
}

static void m_publish_record(struct world *w)
{
    static struct recipients to;
    if (w->message_count == M_MESSAGES)
        return;
    struct m_message *message = &w->messages[w->message_count];
    *message = (struct m_message){.topic = (int)draw(w, M_TOPICS), .payload_size = draw(w, 5) ? 1 + (uint32_t)draw(w, 300) : 0};
    uint8_t payload[301];
    memset(payload, 'p', sizeof payload);
    struct record rec = {.type = RECORD_PUBLISH, .qos = (uint8_t)draw(w, 3), .topic = S(m_topic(message->topic))};
    rec.payload = span_of(payload, message->payload_size);
    to.size = 0;
    uint64_t density = draw(w, 10);
    message->ids_seed = draw(w, 500);
    for (int i = w->session_count - 1; i >= 0; i--) {
        if (draw(w, 10) >= density)
            continue;
        uint8_t ids[VARINT_SIZE_MAX], qos = (uint8_t)draw(w, 3);
        rec.recipients = recipients_add(&to, m_number(i), qos, m_ids(message->ids_seed, i, ids));
        if (w->sessions[i].exists)
            message->wants[i] = (uint8_t)(qos + 1);
    }
    if (draw(w, 3) == 0)
        rec.retained_number = draw_number(w);
    int publisher = draw(w, 2) ? pick_session(w) : -1;
    if (publisher >= 0) {
        rec.session = m_number(publisher);
        if (rec.qos == 2) {
            rec.packet_id = (uint16_t)(1 + draw(w, M_IDS));
            w->sessions[publisher].inbound[rec.packet_id - 1] = true;
        }
        if (draw(w, 4) == 0) {
            rec.will_session = rec.session;
            w->sessions[publisher].will = 0;
        }
    }
    message->sequence = emit(w, &rec);
    w->message_count++;
    if (rec.retained_number > w->retained[message->topic].number) {
        w->retained[message->topic].number = rec.retained_number;
        w->retained[message->topic].sequence = rec.payload.size ? message->sequence : 0;
    }
}

/* The subscriptions, the will, the identifiers. */
static void m_change_record(struct world *w)
{
    int i = pick_session(w), k = (int)draw(w, M_FILTERS), id = (int)draw(w, M_IDS);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    struct record rec = {.session = m_number(i), .packet_id = (uint16_t)(id + 1)};
    char filter[10];
    snprintf(filter, sizeof filter, "f/%d", k);
    switch (draw(w, 5)) {
    case 0:
        rec = (struct record){.type = RECORD_SUBSCRIPTION, .session = rec.session, .topic = S(filter), .options = draw(w, 100)};
        sess->filters[k] = (int)rec.options + 1;
        break;
    case 1:
        rec = (struct record){.type = RECORD_UNSUBSCRIBE, .session = rec.session, .topic = S(filter)};
        sess->filters[k] = 0;
        break;
    case 2:
        sess->will = 1 + (int)draw(w, 100);
        rec = (struct record){.type = RECORD_WILL, .session = rec.session, .topic = S("w"), .options = (uint64_t)sess->will};
        break;
    case 3:
        sess->will = 0;
        rec = (struct record){.type = RECORD_WILL_DELETE, .session = rec.session};
        break;
    default:
        rec.type = RECORD_RELEASED;
        sess->inbound[id] = false;
        break;
    }
    emit(w, &rec);
}

static void m_forget_sent(struct m_session *sess, uint16_t packet_id)
{
    int kept = 0;
    for (int s = 0; s < sess->sent_count; s++)
        if (sess->sent[s].packet_id != packet_id)
            sess->sent[kept++] = sess->sent[s];
    sess->sent_count = kept;
}

/* What a session does with its messages. */
static void m_answer_record(struct world *w)
{
    int i = pick_session(w);
    if (i < 0 || w->message_count == 0)
        return;
    struct m_session *sess = &w->sessions[i];
    struct m_message *message = &w->messages[draw(w, 3) ? w->message_count - 1 - (int)draw(w, 1 + (uint64_t)w->message_count / 8)
                                                        : (int)draw(w, (uint64_t)w->message_count)];
    struct record rec = {.session = m_number(i), .subject_sequence = message->sequence};
    int s = sess->sent_count > 0 ? (int)draw(w, (uint64_t)sess->sent_count) : -1;
    uint64_t what = draw(w, 10);
    if (what < 2 && message->wants[i]) {
        rec.type = RECORD_SENT;
        rec.packet_id = (uint16_t)(1 + draw(w, M_IDS));
        m_forget_sent(sess, rec.packet_id);
        sess->sent[sess->sent_count++] = (struct checkpoint_sent){message->sequence, rec.packet_id, false};
    } else if (what < 4 && s >= 0) {
        rec.type = what == 2 ? RECORD_RECEIVED : RECORD_ACK;
        rec.packet_id = sess->sent[s].packet_id;
        rec.subject_sequence = sess->sent[s].sequence;
        struct m_message *sent = m_find(w, rec.subject_sequence);
        sent->wants[i] = 0;
        if (what == 2)
            sess->sent[s].is_received = true;
        else
            m_forget_sent(sess, rec.packet_id);
    } else {
        rec.type = what < 9 ? RECORD_ACK : RECORD_DROP;
        message->wants[i] = 0;
        uint8_t positions[4 * VARINT_SIZE_MAX];
        size_t size = 0;
        uint64_t last = 0;
        for (int m = 0; rec.type == RECORD_DROP && m < 4 && m < w->message_count; m++) {
            struct m_message *other = &w->messages[draw(w, (uint64_t)w->message_count)];
            other->wants[i] = 0;
            size += position_list_put(positions + size, &last, other->sequence);
        }
        rec.positions = span_of(positions, size);
        emit(w, &rec);
        return;
    }
    emit(w, &rec);
}

/* What is committed and in no run goes into one; or one is consumed. */
static void m_run(struct world *w)
{
    int i = pick_session(w);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    if (sess->run_count > 0 && draw(w, 3) == 0) {
        OK(checkpoint_drop_run(w->b.checkpoint, m_number(i), sess->runs[0].positions[0]));
        memmove(sess->runs, sess->runs + 1, (size_t)--sess->run_count * sizeof *sess->runs);
        return;
    }
    struct m_run run = {.count = 0};
    const struct m_run *last = sess->run_count > 0 ? &sess->runs[sess->run_count - 1] : NULL;
    uint32_t most = draw(w, 3) ? 1 + (uint32_t)draw(w, 4) : CHECKPOINT_RUN;
    for (int m = 0; m < w->message_count && run.count < most; m++) {
        uint64_t sequence = w->messages[m].sequence;
        if (w->messages[m].wants[i] && sequence < w->committed && (!last || sequence > last->positions[last->count - 1]))
            run.positions[run.count++] = sequence;
    }
    if (run.count == 0 || sess->run_count == M_RUNS)
        return;
    OK(checkpoint_put_run(w->b.checkpoint, m_number(i), run.positions, run.count));
    sess->runs[sess->run_count++] = run;
}

static void m_forget(struct world *w)
{
    uint64_t least = w->number + 1;
    for (size_t i = 0; i < 3; i++)
        if (w->late[i] && w->late[i] < least)
            least = w->late[i];
    checkpoint_forget_removals(w->b.checkpoint, least);
}

/* --- the load against the model ---------------------------------------------------------------------------------------------------------
 */

static enum err check_session(void *arg, const struct checkpoint_session *stored)
{
    struct world *w = (struct world *)arg;
    int i = m_index(stored->number);
    assert_in_range(i, 0, w->session_count - 1);
    const struct m_session *sess = &w->sessions[i];
    assert_true(sess->exists);
    assert_false(w->seen_session[i]);
    w->seen_session[i] = true;
    char name[20];
    snprintf(name, sizeof name, "client-%d", i);
    assert_true(span_equal(stored->client_id, S(name)));
    assert_int_equal(stored->expiry_interval_s, sess->expiry);
    assert_int_equal(stored->was_connected, sess->is_connected);
    assert_true(stored->since_wall_ns == sess->since);
    assert_int_equal(stored->protocol, 4);
    struct span rest = stored->subscriptions, bytes;
    struct record rec;
    int subscriptions = 0;
    while (record_next(&bytes, &rest) == ERR_OK) {
        OK(record_decode(&rec, bytes));
        assert_int_equal(sess->filters[rec.topic.data[2] - '0'], (int)rec.options + 1);
        subscriptions++;
    }
    for (int k = 0; k < M_FILTERS; k++)
        subscriptions -= sess->filters[k] != 0;
    assert_int_equal(subscriptions, 0);
    assert_int_equal(stored->will.size > 0, sess->will != 0);
    if (sess->will) {
        OK(record_decode(&rec, stored->will));
        assert_int_equal(rec.options, sess->will);
    }
    uint32_t inbound = 0;
    for (int id = 0; id < M_IDS; id++)
        if (sess->inbound[id])
            assert_int_equal(stored->inbound_ids[inbound++], id + 1);
    assert_int_equal(stored->inbound_count, inbound);
    assert_int_equal(stored->sent_count, sess->sent_count);
    for (int s = 0; s < sess->sent_count; s++) {
        assert_true(stored->sent[s].sequence == sess->sent[s].sequence);
        assert_int_equal(stored->sent[s].packet_id, sess->sent[s].packet_id);
        assert_int_equal(stored->sent[s].is_received, sess->sent[s].is_received);
    }
    return ERR_OK;
}

static enum err check_runs(void *arg, uint64_t number, uint64_t last)
{
    struct world *w = (struct world *)arg;
    int i = m_index(number);
    assert_true(w->sessions[i].exists);
    assert_false(w->seen_runs[i]);
    w->seen_runs[i] = true;
    uint64_t expected = 0;
    for (int r = 0; r < w->stored_run_count; r++)
        if (w->stored_owner[r] == i)
            expected = w->stored_runs[r].positions[w->stored_runs[r].count - 1];
    assert_true(expected == last);
    return ERR_OK;
}

static enum err check_want(void *arg, uint64_t number, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct world *w = (struct world *)arg;
    int i = m_index(number);
    struct m_message *message = m_find(w, sequence);
    assert_non_null(message);
    if (!w->sessions[i].exists)
        return ERR_NOTFOUND;
    assert_int_equal(message->wants[i], want->qos + 1);
    assert_int_equal(want->options, 8);
    uint8_t ids[VARINT_SIZE_MAX];
    assert_true(span_equal(want->ids, m_ids(message->ids_seed, i, ids)));
    assert_int_equal(cost, sizeof(struct msg) + strlen(m_topic(message->topic)) + message->payload_size);
    uint8_t *seen = &w->seen_want[message - w->messages][i];
    assert_int_equal(*seen, 0);
    *seen = 1;
    bool expected = false;
    for (int r = 0; r < w->stored_run_count; r++)
        for (uint32_t k = 0; w->stored_owner[r] == i && k < w->stored_runs[r].count; k++)
            expected = expected || w->stored_runs[r].positions[k] == sequence;
    assert_int_equal(is_in_run, expected);
    return ERR_OK;
}

static enum err check_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    struct world *w = (struct world *)arg;
    const struct m_message *message = m_find(w, sequence);
    assert_non_null(message);
    assert_true(span_equal(topic, S(m_topic(message->topic))));
    assert_true(w->retained[message->topic].number == number);
    assert_true(w->retained[message->topic].sequence == sequence);
    assert_int_equal(cost, sizeof(struct msg) + topic.size + message->payload_size);
    assert_int_equal(expiry, 0);
    w->seen_retained++;
    return ERR_OK;
}

static void check_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg;
    (void)key;
    fail_msg("damage in %s", kv_tree_name(tree));
}

/* What runs the database has, of sessions that are there. */
static void read_runs(struct world *w)
{
    struct kv_txn *txn;
    struct span key, value;
    OK(kv_begin(w->b.kv, &txn, false));
    w->stored_run_count = 0;
    enum err err = kv_seek(txn, KV_RUNS, span_of(NULL, 0), &key, &value);
    for (; err == ERR_OK; err = kv_next(txn, KV_RUNS, &key, &value)) {
        int i = m_index(kv_key_read_u64(key.data));
        struct m_run *run = &w->stored_runs[w->stored_run_count];
        *run = (struct m_run){.count = 0};
        size_t offset = 0;
        uint64_t sequence = 0;
        while (position_list_next(value, &offset, &sequence) == ERR_OK)
            run->positions[run->count++] = sequence;
        assert_int_equal(run->positions[0], kv_key_read_u64(key.data + 8));
        if (w->sessions[i].exists)
            w->stored_owner[w->stored_run_count++] = i;
    }
    kv_abort(txn);
}

static bool m_is_wanted(const struct world *w, const struct m_message *message, int i)
{
    return w->sessions[i].exists && message->wants[i];
}

/* Homes go on with the runs that the load left in the database: those that have a want. */
static void adopt_runs(struct world *w)
{
    for (int i = 0; i < w->session_count; i++)
        w->sessions[i].run_count = 0;
    int kept = 0;
    for (int r = 0; r < w->stored_run_count; r++) {
        int i = w->stored_owner[r];
        bool is_wanted = false;
        for (uint32_t k = 0; k < w->stored_runs[r].count; k++)
            is_wanted = is_wanted || m_is_wanted(w, m_find(w, w->stored_runs[r].positions[k]), i);
        if (!is_wanted)
            continue;
        assert_true(w->sessions[i].run_count < M_RUNS);
        w->sessions[i].runs[w->sessions[i].run_count++] = w->stored_runs[r];
        kept++;
    }
    assert_int_equal(entries(&w->b, KV_RUNS), kept);
}

static void check_counts(struct world *w)
{
    uint64_t bodies = 0, holders = 0, chunks = 0, sessions = 0, values = 0;
    for (int m = 0; m < w->message_count; m++) {
        bool is_wanted = false;
        for (int i = 0; i < w->session_count; i++) {
            is_wanted = is_wanted || m_is_wanted(w, &w->messages[m], i);
            assert_int_equal(w->seen_want[m][i], m_is_wanted(w, &w->messages[m], i));
        }
        bool is_retained = w->retained[w->messages[m].topic].sequence == w->messages[m].sequence;
        bodies += is_wanted || is_retained;
        holders += is_wanted && is_retained;
        chunks += is_wanted;
    }
    for (int i = 0; i < w->session_count; i++) {
        assert_int_equal(w->seen_session[i], w->sessions[i].exists);
        sessions += w->sessions[i].exists;
    }
    for (int t = 0; t < M_TOPICS; t++)
        values += w->retained[t].sequence != 0;
    assert_int_equal(w->seen_retained, values);
    assert_int_equal(entries(&w->b, KV_BODIES), bodies);
    assert_int_equal(entries(&w->b, KV_HOLDERS), holders);
    assert_int_equal(entries(&w->b, KV_RECIPIENTS), chunks);
    assert_int_equal(entries(&w->b, KV_SESSIONS), sessions);
    assert_int_equal(entries(&w->b, KV_RETAINED), values);
    assert_int_equal(checkpoint_state(w->b.checkpoint).session_count, sessions);
    assert_int_equal(checkpoint_state(w->b.checkpoint).retained_count, values);
    assert_int_equal(checkpoint_state(w->b.checkpoint).body_count, bodies);
}

static void check_load(struct world *w)
{
    struct checkpoint_loader loader = {check_session, check_runs, check_want, check_retained, check_corrupt, w, NULL};
    memset(w->seen_session, 0, sizeof w->seen_session);
    memset(w->seen_runs, 0, sizeof w->seen_runs);
    memset(w->seen_want, 0, sizeof w->seen_want);
    w->seen_retained = 0;
    read_runs(w);
    OK(checkpoint_load(w->b.checkpoint, &loader, &w->b.msg));
    check_counts(w);
    adopt_runs(w);
}

/* What readers find below the position: all that is wanted, with its body, and nothing that is done. */
static void check_reads(struct world *w)
{
    struct kv_txn *txn;
    OK(kv_begin(w->b.kv, &txn, false));
    for (int tries = 0; tries < 50 && w->message_count > 0; tries++) {
        const struct m_message *message = &w->messages[draw(w, (uint64_t)w->message_count)];
        int i = (int)draw(w, M_SESSIONS);
        if (i >= w->session_count || !w->sessions[i].exists || message->sequence >= w->committed)
            continue;
        struct checkpoint_want want;
        enum err err = checkpoint_find_want(txn, &want, m_number(i), message->sequence);
        assert_int_equal(err, message->wants[i] ? ERR_OK : ERR_NOTFOUND);
        if (err)
            continue;
        assert_int_equal(want.qos + 1, message->wants[i]);
        struct record rec;
        OK(checkpoint_find_body(txn, &rec, message->sequence));
        assert_true(span_equal(rec.topic, S(m_topic(message->topic))));
        assert_int_equal(rec.payload.size, message->payload_size);
    }
    kv_abort(txn);
}

static void m_commit(struct world *w)
{
    enum err err = ERR_NOSPACE;
    uint64_t what = draw(w, 12);
    if (what == 0)
        sim_kv_fail(w->b.sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    else if (what == 1)
        sim_kv_fail(w->b.sim, SIM_KV_PUT, ERR_NOSPACE, draw(w, 40));
    else if (what == 2)
        sim_kv_set_capacity(w->b.sim, 1 + sim_kv_counts(w->b.sim).used_bytes + draw(w, 2000));
    for (int tries = 0; err == ERR_NOSPACE && tries < 3; tries++) {
        err = try_commit(&w->b);
        if (tries > 0 || err == ERR_OK)
            sim_kv_set_capacity(w->b.sim, 0);
    }
    sim_kv_fail(w->b.sim, SIM_KV_PUT, ERR_OK, 0);
    OK(err);
    w->committed = w->b.sequence + 1;
    check_reads(w);
}

/* The process is dead; the next replays the log, commits and loads. */
static void m_crash(struct world *w)
{
    if (draw(w, 3) == 0) { /* in the middle of a commit */
        sim_kv_fail(w->b.sim, SIM_KV_COMMIT, ERR_IO, 0);
        assert_int_equal(try_commit(&w->b), ERR_IO);
    }
    bench_crash(&w->b);
    for (size_t i = 0; i < w->log_count; i++) {
        struct record rec;
        OK(record_decode(&rec, w->log[i].bytes));
        OK(checkpoint_apply(w->b.checkpoint, &rec, w->log[i].sequence)); /* those below the position too */
        if (draw(w, 200) == 0) {
            struct log_cursor_value cursor = cursor_at(w->log[i].sequence + 1);
            if (cursor.position.sequence > checkpoint_state(w->b.checkpoint).cursor.position.sequence)
                OK(checkpoint_commit(w->b.checkpoint, &cursor, &w->b.msg));
        }
    }
    OK(try_commit(&w->b));
    w->committed = w->b.sequence + 1;
    memset(w->late, 0, sizeof w->late); /* nobody is left to send them */
    check_load(w);
    if (draw(w, 4) == 0) { /* a second start finds nothing to do */
        struct sim_kv_counts before = sim_kv_counts(w->b.sim);
        bench_crash(&w->b);
        check_load(w);
        struct sim_kv_counts after = sim_kv_counts(w->b.sim);
        assert_int_equal(after.puts, before.puts);
        assert_int_equal(after.dels, before.dels);
    }
}

static void m_step(struct world *w)
{
    uint64_t what = draw(w, 1000);
    if (what < 60)
        m_session_record(w);
    else if (what < 72)
        m_delete_record(w);
    else if (what < 300)
        m_publish_record(w);
    else if (what < 420)
        m_change_record(w);
    else if (what < 850)
        m_answer_record(w);
    else if (what < 920)
        m_run(w);
    else if (what < 940)
        m_forget(w);
    else if (what < 990)
        m_commit(w);
    else
        m_crash(w);
}

static void any_stream_of_records_comes_back_after_any_crash(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(11);
    for (uint64_t round = 0; round < 40; round++) {
        struct world *w = (struct world *)calloc(1, sizeof *w);
        check_random_init(&w->random, seed + round);
        w->b.sim = sim_kv_new(seed + round);
        bench_open(&w->b);
        for (int step = 0; step < 1500; step++)
            m_step(w);
        m_crash(w);
        bench_close(&w->b);
        sim_kv_free(w->b.sim);
        for (size_t i = 0; i < w->log_count; i++)
            free((void *)(uintptr_t)w->log[i].bytes.data);
        free(w->log);
        free(w);
    }
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_new_database_gets_format_and_position_with_the_first_commit),
        CASE(another_format_is_refused_and_one_without_position_is_corrupt),
        CASE(values_without_a_format_are_corrupt),
        CASE(what_all_acknowledge_within_a_delta_is_never_written),
        CASE(what_comes_and_goes_takes_no_room),
        CASE(a_body_stays_as_long_as_somebody_wants_it),
        CASE(rows_give_up_what_ended_and_keep_the_rest),
        CASE(a_damaged_row_of_bodies_is_one_row),
        CASE(a_body_is_kept_for_wants_in_any_of_its_rows),
        CASE(wants_end_in_any_order_over_several_chunks),
        CASE(a_session_that_comes_twice_wants_it_once_at_the_greater_qos),
        CASE(a_record_below_the_position_changes_nothing),
        CASE(records_that_no_broker_writes_change_nothing),
        CASE(unknown_types_are_passed_over),
        CASE(a_subscription_is_owed_values_until_they_are_given),
        CASE(a_session_comes_back_as_it_was),
        CASE(a_will_goes_when_it_is_published_or_discarded),
        CASE(the_delta_shrinks_with_what_goes),
        CASE(a_session_value_is_written_only_when_it_differs),
        CASE(thousands_of_filters_of_one_session),
        CASE(names_of_the_greatest_length_are_kept),
        CASE(many_identifiers_of_outgoing_qos_2_keep_their_order),
        CASE(an_identifier_is_in_use_also_for_a_message_without_a_name),
        CASE(a_session_that_ended_takes_its_runs_along),
        CASE(a_long_queue_goes_over_several_commits_or_with_the_load),
        CASE(the_greater_number_is_retained_whatever_comes_first),
        CASE(an_expired_value_is_removed),
        CASE(a_will_that_is_owed_goes_to_a_session_of_its_own),
        CASE(a_removal_is_remembered_until_nothing_older_can_come),
        CASE(a_message_that_is_queued_and_retained_has_two_holders),
        CASE(an_expired_value_goes_when_the_load_refuses_it),
        CASE(an_expired_value_that_cannot_go_is_counted),
        CASE(topics_whose_hashes_collide_stand_beside_each_other),
        CASE(the_load_says_which_wants_stand_in_a_run),
        CASE(what_nobody_is_there_for_is_removed),
        CASE(bodies_and_counts_that_damage_left_behind_are_put_right),
        CASE(damaged_values_are_left_out_and_told),
        CASE(a_callback_that_fails_ends_the_load),
        CASE(a_commit_without_space_keeps_the_delta),
        CASE(removals_that_are_found_again_do_not_count),
        CASE(removals_go_ahead_of_what_does_not_fit),
        CASE(a_writer_needs_no_slot_of_a_reader),
        CASE(a_load_needs_no_slot_of_a_reader),
        CASE(values_are_as_in_the_example_of_the_formats_document),
        cmocka_unit_test(any_stream_of_records_comes_back_after_any_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
