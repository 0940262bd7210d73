/* The store and reader threads over a real log and database: what is logged comes back from the reader, and a stop leaves nothing behind.
 */
#include "broker/durable/store_thread.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/actor/bell.h"
#include "broker/actor/msg.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/durable/reader_thread.h"
#include "common/clock.h"

#define BODY_MAX 8192
#define SEGMENT_SIZE ((uint64_t)1 << 20)

struct bench {
    char root[64], log_dir[80], kv_dir[80];
    struct kv *kv;
    struct checkpoint *checkpoint;
    struct log_writer *log;
    struct log_block_pool pool;
    struct exchange *exchange;
    struct store_thread *store;
    struct reader_thread *reader;
    struct bell bell; /* of shard 0, which is the test */
    uint64_t checkpoint_sequence;
    struct store_read *answer;
    _Atomic int failures;
};

static void bench_on_op(void *arg, const struct op *op)
{
    struct bench *b = arg;
    if (op->type == OP_STORE_CHECKPOINT)
        b->checkpoint_sequence = op->checkpoint.sequence;
    else if (op->type == OP_STORE_READ_DONE)
        b->answer = op->read;
}

static void bench_on_failed(void *arg)
{
    struct bench *b = arg;
    atomic_fetch_add(&b->failures, 1);
}

static void bench_open(struct bench *b)
{
    struct errmsg msg = {{0}};
    struct kv_lmdb_options kv_options = {.dir = b->kv_dir, .map_bytes = (uint64_t)256 << 20};
    assert_int_equal(kv_lmdb_open(&b->kv, &kv_options, &msg), ERR_OK);
    assert_int_equal(checkpoint_open(&b->checkpoint, b->kv, 1, &msg), ERR_OK);
    struct log_writer_options log_options = {
        .fs = fs_posix(), .dir = b->log_dir, .segment_size = SEGMENT_SIZE, .checkpoint = checkpoint_state(b->checkpoint).cursor.reopen};
    assert_int_equal(log_writer_open(&b->log, &log_options, NULL, &msg), ERR_OK);
    assert_int_equal(log_block_pool_init(&b->pool, 0, 4, BODY_MAX, log_writer_alignment(b->log)), ERR_OK);
    assert_int_equal(store_writer_replay(b->checkpoint, fs_posix(), b->log_dir, 1 << 20, &msg), ERR_OK);
    b->exchange = exchange_new(1, 64);
    assert_int_equal(bell_init(&b->bell), ERR_OK);
    exchange_set_wake(b->exchange, 0, bell_ring, &b->bell);
    static struct bell route; /* nobody */
    if (!route.fd)
        assert_int_equal(bell_init(&route), ERR_OK);
    exchange_set_wake(b->exchange, ACTOR_ROUTE, bell_ring, &route);
    struct store_thread_config config = {
        .checkpoint = b->checkpoint,
        .options = {.fs = fs_posix(),
                    .log_dir = b->log_dir,
                    .interval_ns = 20 * NS_PER_MS,
                    .segment_bytes = SEGMENT_SIZE,
                    .lag_ns_max = 60 * NS_PER_S,
                    .lag_bytes_max = (uint64_t)1 << 30,
                    .delta_bytes_max = 1 << 20,
                    .shard_count = 1},
        .on_failed = bench_on_failed,
        .on_failed_arg = b,
    };
    assert_int_equal(store_thread_start(&b->store, b->exchange, b->log, &config), ERR_OK);
    assert_int_equal(reader_thread_start(&b->reader, b->exchange, b->kv), ERR_OK);
}

/* As the broker stops; nobody reads what is still in the rings. */
static void bench_stop(struct bench *b)
{
    store_thread_stop(b->store);
    reader_thread_stop(b->reader);
    exchange_free(b->exchange);
    bell_deinit(&b->bell);
}

static void bench_close(struct bench *b)
{
    checkpoint_free(b->checkpoint);
    log_block_pool_deinit(&b->pool);
    log_writer_close(b->log);
    kv_close(b->kv);
}

static struct bench *bench_new(void)
{
    struct bench *b = calloc(1, sizeof *b);
    const char *tmp = getenv("TMPDIR");
    snprintf(b->root, sizeof b->root, "%.32s/tidegate-store-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(b->root));
    snprintf(b->log_dir, sizeof b->log_dir, "%s/log", b->root);
    snprintf(b->kv_dir, sizeof b->kv_dir, "%s/kv", b->root);
    bench_open(b);
    return b;
}

static void remove_name(void *context, const char *name)
{
    char path[FILE_PATH_MAX];
    assert_int_equal(file_path(path, context, name), ERR_OK);
    (void)unlink(path);
}

static void bench_free(struct bench *b)
{
    bench_stop(b);
    bench_close(b);
    assert_int_equal(fs_list(fs_posix(), b->log_dir, b->log_dir, remove_name), ERR_OK);
    assert_int_equal(fs_list(fs_posix(), b->kv_dir, b->kv_dir, remove_name), ERR_OK);
    (void)rmdir(b->log_dir);
    (void)rmdir(b->kv_dir);
    assert_int_equal(rmdir(b->root), 0);
    free(b);
}

static void put(struct bench *b, const struct record *rec)
{
    struct log_block *block = log_block_pool_get(&b->pool);
    assert_int_equal(log_block_append(block, rec), ERR_OK);
    log_block_seal(&b->pool, block);
    log_writer_begin(b->log, &block, 1);
    assert_int_equal(log_writer_write(b->log, NULL), ERR_OK);
    assert_int_equal(log_writer_finish(b->log, clock_mono()), ERR_OK);
    log_block_pool_put(&b->pool, block);
}

/* A session and `count` messages for it. */
static void put_messages(struct bench *b, int count)
{
    struct record session = {.type = RECORD_SESSION,
                             .session = 1,
                             .client_id = SPAN_LITERAL("c"),
                             .received_ns = 1,
                             .options = 60 | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT};
    put(b, &session);
    for (int i = 0; i < count; i++) {
        uint8_t recipients[64], payload[100] = {0};
        struct record_recipient recipient = {.session = 1, .qos = 1};
        struct record rec = {.type = RECORD_PUBLISH, .qos = 1, .topic = SPAN_LITERAL("t"), .received_ns = 1, .session = 2};
        payload[0] = (uint8_t)i;
        rec.payload = span_of(payload, sizeof payload);
        rec.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
        put(b, &rec);
    }
}

/* Be shard 0 until something happens. */
#define WAIT_UNTIL(b, cond)                                                                                                                \
    for (int turn_ = 0; !(cond); turn_++) {                                                                                                \
        assert_true(turn_ < 20000);                                                                                                        \
        assert_int_equal(atomic_load(&(b)->failures), 0);                                                                                  \
        if (exchange_drain((b)->exchange, 0, 64, 0, bench_on_op, (b)) > 0)                                                                 \
            continue;                                                                                                                      \
        exchange_sleep((b)->exchange, 0);                                                                                                  \
        if (!exchange_has_ops((b)->exchange, 0))                                                                                           \
            bell_wait(&(b)->bell, NS_PER_MS);                                                                                              \
        exchange_awake((b)->exchange, 0);                                                                                                  \
    }

static void what_is_logged_can_be_read(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    put_messages(b, 50);
    WAIT_UNTIL(b, b->checkpoint_sequence == 52);
    struct store_read *read = calloc(1, sizeof *read);
    read->session = 1;
    for (; read->count < STORE_READ_MAX; read->count++)
        read->items[read->count] = (struct store_read_item){.sequence = 2 + read->count};
    assert_true(exchange_post(b->exchange, 0, ACTOR_READER, &(struct op){.type = OP_STORE_READ, .read = read}, true));
    exchange_flush(b->exchange, 0);
    WAIT_UNTIL(b, b->answer);
    assert_ptr_equal(b->answer, read);
    for (uint32_t i = 0; i < read->count; i++) {
        assert_int_equal(read->items[i].state, STORE_ITEM_FOUND);
        assert_int_equal(msg_payload(read->items[i].msg).data[0], i);
    }
    store_read_free(read);
    assert_int_equal(counter_get(&reader_thread_get_stats(b->reader)->messages), STORE_READ_MAX);
    assert_true(store_thread_writer_stats(b->store) != NULL);
    bench_free(b);
}

static void a_stop_commits_all_that_is_durable(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    for (int round = 1; round <= 3; round++) {
        put_messages(b, 20); /* and at once the end: the state file does not have them yet */
        bench_stop(b);
        assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, 1 + 21 * round);
        bench_close(b);
        bench_open(b);
    }
    bench_free(b);
}

/* Called by the store thread, which has looked into its rings, at the end of a commit: the shard's last word, and then the stop. */
struct last_word {
    struct bench *bench;
    _Atomic bool is_said;
};

static void say_last_word(void *arg)
{
    struct last_word *last = arg;
    if (atomic_load(&last->is_said))
        return;
    struct op op = {.type = OP_STORE_PASSED, .passed = {.number = 1, .block = 1}};
    assert_true(exchange_post(last->bench->exchange, 0, ACTOR_STORE, &op, true));
    atomic_store(&last->is_said, true);
    (void)usleep(20000); /* for the test to ask for the stop; a test that is late shows nothing */
}

static void what_was_posted_before_a_stop_is_taken(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct last_word last = {.bench = b};
    exchange_set_wake(b->exchange, 0, say_last_word, &last);
    exchange_sleep(b->exchange, 0);
    put_messages(b, 1);
    for (int i = 0; !atomic_load(&last.is_said); i++) {
        assert_true(i < 100000);
        (void)usleep(1000);
    }
    store_thread_stop(b->store);
    b->store = NULL;
    assert_false(exchange_has_ops(b->exchange, ACTOR_STORE));
    bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_logged_can_be_read),
        cmocka_unit_test(a_stop_commits_all_that_is_durable),
        cmocka_unit_test(what_was_posted_before_a_stop_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
