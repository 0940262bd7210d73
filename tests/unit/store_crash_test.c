/* What a crash leaves of the checkpoint. The model is the definition: the checkpoint is what a new one would be that is given every durable
 * record at once. */
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/position_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/store_bench.h"

#define SESSION_NUMBERS 4096

/* All that a checkpoint holds, as text that does not depend on the order of what has none. */
struct dump {
    char *text;
    size_t size, capacity;
    bool sessions[SESSION_NUMBERS]; /* seen */
    struct {
        uint64_t session, sequence;
    } bodies[STORE_BENCH_RECORDS_MAX];
    size_t body_count;
};

static void __attribute__((format(printf, 2, 3))) dump_line(struct dump *dump, const char *format, ...)
{
    va_list list;
    if (dump->size + 512 > dump->capacity) {
        dump->capacity = 2 * dump->capacity + 4096;
        dump->text = realloc(dump->text, dump->capacity);
    }
    va_start(list, format);
    dump->size += (size_t)vsnprintf(dump->text + dump->size, 512, format, list);
    va_end(list);
}

static uint64_t hash_bytes(struct span bytes)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < bytes.size; i++)
        hash = (hash ^ bytes.data[i]) * 1099511628211u;
    return hash;
}

static uint64_t hash_records(struct span records)
{
    uint64_t sum = 0;
    struct span one;
    while (record_next(&one, &records) == ERR_OK)
        sum += hash_bytes(one);
    return sum;
}

static enum err dump_session(void *arg, const struct checkpoint_session *session)
{
    struct dump *dump = arg;
    uint64_t ids = 0;
    for (uint32_t i = 0; i < session->inbound_count; i++)
        ids += (uint64_t)session->inbound_ids[i] * session->inbound_ids[i] + 1;
    assert_true(session->number < SESSION_NUMBERS);
    dump->sessions[session->number] = true;
    dump_line(dump, "session %u %.*s expiry %u connected %d since %lld protocol %u subscriptions %llx will %llx inbound %u:%llx sent",
              (unsigned)session->number, (int)session->client_id.size, (const char *)session->client_id.data, session->expiry_interval_s,
              session->was_connected, (long long)session->since_wall_ns, session->protocol,
              (unsigned long long)hash_records(session->subscriptions), (unsigned long long)hash_records(session->will),
              session->inbound_count, (unsigned long long)ids);
    for (uint32_t i = 0; i < session->sent_count; i++)
        dump_line(dump, " %llu/%u/%d", (unsigned long long)session->sent[i].sequence, session->sent[i].packet_id,
                  session->sent[i].is_received);
    dump_line(dump, "\n");
    return ERR_OK;
}

static enum err dump_runs(void *arg, uint64_t session, uint64_t last_sequence)
{
    (void)arg;
    (void)session;
    (void)last_sequence;
    return ERR_OK;
}

static enum err dump_want(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct dump *dump = arg;
    assert_false(is_in_run);
    if (!dump->sessions[session])
        return ERR_NOTFOUND;
    dump_line(dump, "want %llu %llu qos %u cost %u\n", (unsigned long long)session, (unsigned long long)sequence, want->qos, cost);
    dump->bodies[dump->body_count].session = session;
    dump->bodies[dump->body_count++].sequence = sequence;
    return ERR_OK;
}

static enum err dump_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    struct dump *dump = arg;
    dump_line(dump, "retained %016llx number %llu %llu cost %u expiry %lld\n", (unsigned long long)hash_bytes(topic),
              (unsigned long long)number, (unsigned long long)sequence, cost, (long long)expiry);
    dump->bodies[dump->body_count].session = 0;
    dump->bodies[dump->body_count++].sequence = sequence;
    return ERR_OK;
}

static void dump_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg;
    (void)key;
    fail_msg("damaged value in tree %d", (int)tree);
}

static struct dump *dump_new(struct kv *kv)
{
    struct dump *dump = calloc(1, sizeof *dump);
    struct checkpoint *checkpoint;
    struct checkpoint_loader loader = {.on_session = dump_session,
                                       .on_runs = dump_runs,
                                       .on_want = dump_want,
                                       .on_retained = dump_retained,
                                       .on_corrupt = dump_corrupt,
                                       .arg = dump};
    assert_int_equal(checkpoint_open(&checkpoint, kv, 7, NULL), ERR_OK);
    dump_line(dump, "position %llu, retained to %llu\n", (unsigned long long)checkpoint_state(checkpoint).cursor.position.sequence,
              (unsigned long long)checkpoint_state(checkpoint).retained_number_max);
    assert_int_equal(checkpoint_load(checkpoint, &loader, NULL), ERR_OK);
    checkpoint_free(checkpoint);
    struct kv_txn *txn;
    assert_int_equal(kv_begin(kv, &txn, false), ERR_OK);
    for (size_t i = 0; i < dump->body_count; i++) {
        struct record rec;
        enum err err = checkpoint_find_body(txn, &rec, dump->bodies[i].sequence);
        dump_line(dump, "body %llu: %d %llx\n", (unsigned long long)dump->bodies[i].sequence, err,
                  err ? 0 : (unsigned long long)(hash_bytes(rec.topic) ^ hash_bytes(rec.payload) ^ (uint64_t)rec.qos));
    }
    kv_abort(txn);
    return dump;
}

static void dump_free(struct dump *dump)
{
    free(dump->text);
    free(dump);
}

/* What the checkpoint must be: all records up to `end` applied at once. */
static struct dump *dump_of_records(struct store_bench *b, uint64_t end)
{
    struct sim_kv *sim = sim_kv_new(1);
    struct kv *kv = sim_kv_open(sim);
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(&checkpoint, kv, 7, NULL), ERR_OK);
    for (uint64_t i = 1; i < end; i++) {
        struct record rec;
        assert_int_equal(record_decode(&rec, span_of(b->records[i].bytes, b->records[i].size)), ERR_OK);
        assert_int_equal(checkpoint_apply(checkpoint, &rec, i), ERR_OK);
    }
    struct log_cursor_value cursor = {.broker_id = 1, .position = {1, end}, .place = {1, 4096}, .reopen = {1, 4096}};
    assert_int_equal(checkpoint_commit(checkpoint, &cursor, NULL), ERR_OK);
    checkpoint_free(checkpoint);
    struct dump *dump = dump_new(kv);
    kv_close(kv);
    sim_kv_free(sim);
    return dump;
}

/* A random record about few sessions, topics and identifiers, so that they meet. */
static struct record random_record(struct check_random *random, const struct store_bench *b, uint8_t scratch[512])
{
    static uint8_t payload[12000];
    static const char *topics[] = {"a", "a/b", "c", "d/e/f"};
    uint64_t recent = b->record_count > 30 ? b->record_count - check_random_below(random, 30) : 1 + check_random_below(random, 30);
    uint64_t place = check_random_below(random, STORE_BENCH_SESSIONS);
    struct record rec = {.session = store_bench_session(b, place), .received_ns = STORE_BENCH_WALL + (int64_t)b->record_count};
    rec.topic = span_of_string(topics[check_random_below(random, 4)]);
    /* Nothing is said of a session before it is there. */
    switch (b->created[place] ? check_random_below(random, 16) : 0) {
    case 0:
    case 1:
        rec.type = RECORD_SESSION;
        rec.topic = span_of(NULL, 0);
        rec.client_id = span_of_string("somebody");
        rec.options = 100 | UINT64_C(4) << RECORD_SESSION_PROTOCOL_SHIFT | (check_random_below(random, 2) ? RECORD_SESSION_CONNECTED : 0);
        return rec;
    case 2:
        rec.type = check_random_below(random, 5) ? RECORD_WILL : RECORD_SESSION_DELETE;
        if (rec.type == RECORD_SESSION_DELETE)
            rec.topic = span_of(NULL, 0);
        return rec;
    case 3:
        rec.type = check_random_below(random, 3) ? RECORD_SUBSCRIPTION : RECORD_UNSUBSCRIBE;
        rec.options = check_random_below(random, 3);
        return rec;
    case 4:
    case 5:
    case 6:
    case 7:
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_ACK;
        rec.subject_sequence = recent;
        return rec;
    case 8: {
        uint64_t last = 0;
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_DROP;
        size_t used = position_list_put(scratch, &last, recent);
        used += position_list_put(scratch + used, &last, recent + 2);
        rec.positions = span_of(scratch, used);
        return rec;
    }
    case 9:
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_RELEASED;
        rec.packet_id = (uint16_t)(1 + check_random_below(random, 5));
        return rec;
    case 10: /* telemetry */
        rec.type = RECORD_PUBLISH;
        rec.payload = span_of(payload, check_random_below(random, 3000));
        return rec;
    default:
        break;
    }
    rec.type = RECORD_PUBLISH;
    rec.qos = (uint8_t)check_random_below(random, 3);
    rec.packet_id = rec.qos == 2 ? (uint16_t)(1 + check_random_below(random, 5)) : 0;
    rec.payload = span_of(payload, check_random_below(random, check_random_below(random, 20) ? 600 : sizeof payload));
    if (check_random_below(random, 4) == 0) {
        rec.retain = true;
        rec.retained_number = (b->record_count ^ 3) + 1; /* not in the order of the log */
        if (check_random_below(random, 3) == 0)
            rec.payload.size = 0;
    }
    size_t used = 0;
    for (uint64_t i = 0; i < STORE_BENCH_SESSIONS; i++) {
        struct record_recipient recipient = {.session = store_bench_session(b, i), .qos = (uint8_t)check_random_below(random, 3)};
        if (b->created[i] && check_random_below(random, 2))
            used += record_recipient_put(scratch + used, &recipient);
    }
    rec.recipients = span_of(scratch, used);
    return rec;
}

/* A write of one or two blocks, one per shard, that a crash may cut. False: cut. */
static bool random_write(struct store_bench *b, struct check_random *random, enum store_cut cut)
{
    struct log_block *blocks[STORE_BENCH_SHARDS];
    uint8_t scratch[512];
    size_t count = 1 + check_random_below(random, STORE_BENCH_SHARDS);
    for (uint16_t i = 0; i < count; i++) {
        blocks[i] = log_block_pool_get(&b->pools[i]);
        for (uint64_t left = 1 + check_random_below(random, 5); left; left--) {
            struct record rec = random_record(random, b, scratch);
            enum err err = log_block_append(blocks[i], &rec);
            if (err == ERR_OK)
                store_bench_keep(b, &rec);
            else if (blocks[i]->record_count == 0)
                left++; /* too large: another */
            else
                break;
        }
        log_block_seal(&b->pools[i], blocks[i]);
    }
    enum err err = store_bench_write(b, blocks, count, cut);
    if (cut != STORE_CUT_NONE)
        for (uint16_t i = 0; i < count; i++)
            log_block_pool_put(&b->pools[i], blocks[i]);
    assert_true(err == ERR_OK || err == ERR_NOSPACE);
    return cut == STORE_CUT_NONE;
}

/* A large record, perhaps with commits between its blocks. */
static void put_large(struct store_bench *b, struct check_random *random)
{
    uint8_t scratch[512];
    struct record rec;
    int tries = 0;
    do {
        if (++tries > 1000) /* there is no session yet */
            return;
        rec = random_record(random, b, scratch);
    } while (rec.type != RECORD_PUBLISH || record_size(&rec) <= STORE_BENCH_BODY_MAX);
    b->group_pause_ns = (int64_t)check_random_below(random, 3) * NS_PER_S;
    store_bench_put(b, (uint16_t)check_random_below(random, STORE_BENCH_SHARDS), &rec);
    b->group_pause_ns = 0;
}

static void random_life(struct store_bench *b, struct check_random *random, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i++) {
        if (log_writer_room(b->log, LOG_ROOM_PUBLISH) < 2 * STORE_BENCH_SEGMENT_SIZE) {
            assert_int_equal(store_bench_step(b, true), ERR_OK);
            while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
                continue;
        }
        if (check_random_below(random, 10) == 0) {
            put_large(b, random);
        } else {
            random_write(b, random, STORE_CUT_NONE);
        }
        b->now += (int64_t)check_random_below(random, 400) * NS_PER_MS;
        if (check_random_below(random, 20) == 0)
            sim_kv_fail(b->sim_kv, check_random_below(random, 2) ? SIM_KV_COMMIT : SIM_KV_PUT, ERR_NOSPACE, 0);
        assert_int_equal(store_bench_step(b, false), ERR_OK);
        while (check_random_below(random, 3) == 0 && log_writer_prepare(b->log, NULL) == ERR_AGAIN)
            continue;
    }
}

/* The lines of one that the other has not. */
static void print_difference(const char *is, const char *should)
{
    const char *texts[] = {is, should};
    for (int i = 0; i < 2; i++)
        for (const char *line = texts[i]; *line; line = strchr(line, '\n') + 1) {
            size_t size = (size_t)(strchr(line, '\n') + 1 - line);
            bool found = false;
            for (const char *other = texts[!i]; !found && *other; other = strchr(other, '\n') + 1)
                found = strncmp(line, other, size) == 0;
            if (!found)
                print_error("%s: %.*s", i == 0 ? "is only" : "should be", (int)size, line);
        }
}

/* Of what the log lost nobody knows. */
static void forget_sessions(struct store_bench *b)
{
    for (uint64_t place = 0; place < STORE_BENCH_SESSIONS; place++) {
        b->created[place] = false;
        for (uint64_t i = 1; i <= b->record_count; i++) {
            struct record rec;
            assert_int_equal(record_decode(&rec, span_of(b->records[i].bytes, b->records[i].size)), ERR_OK);
            b->created[place] = b->created[place] || (rec.type == RECORD_SESSION && rec.session == store_bench_session(b, place));
        }
    }
}

/* Die, come back. Returns what opening said; on ERR_OK all is compared with the model. */
static enum err crash_and_compare(struct store_bench *b, struct check_random *random)
{
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_OK, 0);
    sim_kv_fail(b->sim_kv, SIM_KV_PUT, ERR_OK, 0);
    if (check_random_below(random, 3))
        sim_fs_crash(b->sim);
    else
        sim_fs_kill(b->sim);
    sim_kv_crash(b->sim_kv);
    store_bench_close(b);
    enum err err = store_bench_open(b, NULL);
    if (err)
        return err;
    uint64_t end = log_writer_durable_end(b->log).position.sequence;
    assert_true(end <= b->record_count + 1);
    store_bench_forget_records(b, end);
    forget_sessions(b);
    store_bench_close(b);
    b->kv = sim_kv_open(b->sim_kv);
    struct dump *is = dump_new(b->kv), *should = dump_of_records(b, end);
    bool equal = strcmp(is->text, should->text) == 0;
    if (!equal && !b->mistake_end)
        print_difference(is->text, should->text);
    dump_free(is);
    dump_free(should);
    kv_close(b->kv);
    b->kv = NULL;
    if (!equal)
        return ERR_INVALID;
    return store_bench_open(b, NULL);
}

static void what_a_crash_leaves_is_what_the_log_says(void **state)
{
    (void)state;
    const char *seeds = getenv("SEEDS");
    uint64_t first = check_random_seed(1), count = seeds ? strtoull(seeds, NULL, 10) : 15;
    for (uint64_t seed = first; seed < first + count; seed++) {
        struct check_random random;
        check_random_init(&random, seed);
        struct store_bench *b = store_bench_make(seed);
        b->options.delta_bytes_max = 2000 + check_random_below(&random, 20000);
        assert_int_equal(store_bench_open(b, NULL), ERR_OK);
        for (int life = 0; life < 6; life++) {
            random_life(b, &random, 1 + check_random_below(&random, 60));
            uint64_t fate = check_random_below(&random, 5);
            if (fate < 2) {
                random_write(b, &random, fate ? STORE_CUT_BEFORE_WRITE : STORE_CUT_BEFORE_FINISH);
                assert_int_equal(store_bench_step(b, check_random_below(&random, 2)), ERR_OK);
            } else if (fate == 2) { /* in the middle of a commit */
                random_write(b, &random, STORE_CUT_NONE);
                sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_IO, 0);
                enum err err = store_bench_step(b, true);
                assert_true(err == ERR_OK || err == ERR_IO);
            } else if (fate == 3) { /* between the blocks of a large record */
                b->is_cut_in_group = true;
                put_large(b, &random);
                b->is_cut_in_group = false;
            }
            if (crash_and_compare(b, &random) != ERR_OK)
                fail_msg("seed %llu, life %d", (unsigned long long)seed, life);
        }
        store_bench_free(b);
    }
}

/* The test above can fail: a writer that applies what is not durable is found out. */
static void applied_before_durable_is_found(void **state)
{
    (void)state;
    unsigned found = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct check_random random;
        check_random_init(&random, seed);
        struct store_bench *b = store_bench_new(seed);
        random_life(b, &random, 10);
        assert_int_equal(store_bench_step(b, true), ERR_OK);
        b->mistake_end = 1;
        sim_fs_hold(b->sim, true);
        random_write(b, &random, STORE_CUT_BEFORE_FINISH);
        if (store_bench_step(b, true) == ERR_OK)
            found += crash_and_compare(b, &random) != ERR_OK;
        sim_fs_hold(b->sim, false);
        store_bench_free(b);
    }
    assert_true(found > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_crash_leaves_is_what_the_log_says),
        cmocka_unit_test(applied_before_durable_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
