#include "tests/lib/checkpoint_bench.h"

#include <stdio.h>
#include <stdlib.h>

#include "broker/actor/msg.h"
#include "common/hash.h"

void bench_open(struct bench *b)
{
    b->kv = sim_kv_open(b->sim);
    OK(checkpoint_open(&b->checkpoint, b->kv, BENCH_RANDOM_SEED, &b->msg));
}

void bench_close(struct bench *b)
{
    checkpoint_free(b->checkpoint);
    kv_close(b->kv);
}

void bench_crash(struct bench *b)
{
    sim_kv_crash(b->sim);
    bench_close(b);
    bench_open(b);
}

int bench_setup(void **state)
{
    struct bench *b = (struct bench *)calloc(1, sizeof *b);
    b->sim = sim_kv_new(7);
    bench_open(b);
    *state = b;
    return 0;
}

int bench_teardown(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_close(b);
    sim_kv_free(b->sim);
    free(b);
    return 0;
}

struct log_cursor_value bench_cursor_at(uint64_t next)
{
    return (struct log_cursor_value){.broker_id = BENCH_BROKER, .position = {3, next}, .place = {5, next * 512}, .reopen = {4, next * 256}};
}

enum err bench_try_commit(struct bench *b)
{
    struct log_cursor_value cursor = bench_cursor_at(b->sequence + 1);
    return checkpoint_commit(b->checkpoint, &cursor, &b->msg);
}

void bench_commit(struct bench *b) { OK(bench_try_commit(b)); }

uint64_t bench_apply(struct bench *b, struct record rec)
{
    OK(checkpoint_apply(b->checkpoint, &rec, ++b->sequence));
    return b->sequence;
}

struct span bench_recipients_add(struct bench_recipients *to, uint64_t session, uint8_t qos, struct span ids)
{
    struct record_recipient recipient = {.session = session, .qos = qos, .options = 8, .ids = ids};
    to->size += record_recipient_put(to->bytes + to->size, &recipient);
    return span_of(to->bytes, to->size);
}

struct record bench_publish_to(struct bench_recipients *to, const uint64_t *sessions, size_t count)
{
    to->size = 0;
    for (size_t i = 0; i < count; i++)
        bench_recipients_add(to, sessions[i], 1, span_of(NULL, 0));
    return (struct record){
        .type = RECORD_PUBLISH, .qos = 1, .topic = S("a/b"), .payload = S("hello"), .recipients = span_of(to->bytes, to->size)};
}

uint64_t bench_publish(struct bench *b, uint64_t first_session, size_t count)
{
    static struct bench_recipients to;
    uint64_t sessions[2000];
    for (size_t i = 0; i < count; i++)
        sessions[i] = first_session + i;
    return bench_apply(b, bench_publish_to(&to, sessions, count));
}

void bench_retain(struct bench *b, const char *topic, const char *payload, uint64_t number)
{
    bench_apply(
        b, (struct record){.type = RECORD_PUBLISH, .retain = true, .topic = S(topic), .payload = S(payload), .retained_number = number});
}

void bench_ack(struct bench *b, uint64_t session, uint64_t sequence)
{
    bench_apply(b, (struct record){.type = RECORD_ACK, .session = session, .subject_sequence = sequence});
}

void bench_session(struct bench *b, uint64_t number, bool is_connected)
{
    bench_apply(
        b, (struct record){.type = RECORD_SESSION,
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

uint64_t bench_rows(struct bench *b, enum kv_tree tree)
{
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    return stats.entries[tree];
}

uint64_t bench_entries(struct bench *b, enum kv_tree tree)
{
    struct kv_txn *txn;
    struct span key, value;
    uint64_t count = 0;
    if (tree != KV_BODIES && tree != KV_RECIPIENTS)
        return bench_rows(b, tree);
    OK(kv_begin(b->kv, &txn, false));
    enum err err = kv_seek(txn, tree, span_of(NULL, 0), &key, &value);
    for (; !err; err = kv_next(txn, tree, &key, &value))
        count += row_messages(tree, key, value);
    assert_int_equal(err, ERR_NOTFOUND);
    kv_abort(txn);
    return count;
}

enum err bench_find_want(struct bench *b, uint64_t number, uint64_t sequence)
{
    struct kv_txn *txn;
    struct checkpoint_want want;
    OK(kv_begin(b->kv, &txn, false));
    enum err err = checkpoint_find_want(txn, &want, number, sequence);
    kv_abort(txn);
    return err;
}

__attribute__((format(printf, 2, 3))) static void say(struct bench_loaded *loaded, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    loaded->size += (size_t)vsnprintf(loaded->text + loaded->size, sizeof loaded->text - loaded->size, format, args);
    va_end(args);
    assert_true(loaded->size < sizeof loaded->text);
}

static enum err say_session(void *arg, const struct checkpoint_session *sess)
{
    struct bench_loaded *loaded = (struct bench_loaded *)arg;
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
    say((struct bench_loaded *)arg, "runs %d to %d\n", (int)number, (int)last);
    return ERR_OK;
}

static enum err say_want(void *arg, uint64_t number, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct bench_loaded *loaded = (struct bench_loaded *)arg;
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
    struct bench_loaded *loaded = (struct bench_loaded *)arg;
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
    ((struct bench_loaded *)arg)->corrupt++;
}

enum err bench_try_load(struct bench *b, struct bench_loaded *loaded)
{
    struct checkpoint_loader loader = {say_session, say_runs, say_want, say_retained, say_corrupt, loaded, NULL};
    return checkpoint_load(b->checkpoint, &loader, &b->msg);
}

void bench_assert_loads(struct bench *b, const uint64_t *known, const char *expected)
{
    bench_commit(b);
    bench_crash(b);
    struct bench_loaded loaded = {.known = known};
    OK(bench_try_load(b, &loaded));
    assert_string_equal(loaded.text, expected);
    assert_int_equal(loaded.corrupt, 0);
}

struct span bench_retained_key(uint8_t key_out[16], const char *topic, uint64_t slot)
{
    const char *volatile unseen = topic; /* with a literal's size in view gcc warns of what the hash does with longer ones */
    const char *bytes = unseen;
    XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, strlen(bytes), BENCH_RANDOM_SEED);
    return kv_key_u64_u64(key_out, hash.high64, (hash.low64 & ~UINT64_C(7)) + slot);
}
