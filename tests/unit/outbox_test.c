/* The outbox against one long array, written in pieces of any size. */
#include "broker/session/outbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static uint8_t model[1 << 22];

static void check_write(struct outbox *outbox, struct outbox_pool *pool, size_t *written, size_t end, size_t size_max, int count_max)
{
    struct iovec iov[64];
    int count = outbox_iovecs(outbox, iov, count_max);
    size_t taken = 0;
    for (int i = 0; i < count && taken < size_max; i++) {
        assert_true(iov[i].iov_len > 0);
        size_t size = iov[i].iov_len < size_max - taken ? iov[i].iov_len : size_max - taken;
        assert_memory_equal(iov[i].iov_base, model + *written + taken, size);
        taken += size;
    }
    assert_true(taken > 0 || *written == end || size_max == 0);
    outbox_consume(outbox, pool, taken);
    *written += taken;
}

static void bytes_come_out_in_order(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(13));
    for (int round = 0; round < 30; round++) {
        struct outbox outbox = {0};
        struct outbox_pool pool = {0};
        size_t end = 0, written = 0;
        while (end < sizeof model - 70000) {
            size_t size = check_random_below(&random, 4) == 0 ? check_random_below(&random, 60000) : check_random_below(&random, 30);
            check_random_fill(&random, model + end, size);
            switch (check_random_below(&random, 4)) {
            case 0: {
                struct msg *msg =
                    msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = span_of(model + end, size), .qos = 1});
                assert_true(outbox_put_payload(&outbox, &pool, msg));
                msg_unref(msg); /* the outbox has its own reference */
                break;
            }
            case 1:
                assert_true(outbox_put(&outbox, &pool, model + end, size));
                break;
            default: {
                size_t room = size + check_random_below(&random, 10); /* less may be committed than was reserved */
                uint8_t *at = outbox_reserve(&outbox, &pool, room);
                assert_non_null(at);
                memcpy(at, model + end, size);
                outbox_commit(&outbox, size);
            }
            }
            end += size;
            assert_int_equal(outbox.bytes, end - written);
            while (check_random_chance(&random, 1, 2) || end - written > 200000)
                check_write(&outbox, &pool, &written, end,
                            round % 3 == 0 ? 1 + check_random_below(&random, 9000) : 1 + check_random_below(&random, 100000),
                            (int)(1 + check_random_below(&random, 64)));
        }
        while (written < end)
            check_write(&outbox, &pool, &written, end, 100000, 64);
        assert_true(outbox_is_empty(&outbox));
        outbox_clear(&outbox, &pool);
        outbox_pool_deinit(&pool);
    }
}

static void writes_of_one_byte_are_right(void **state)
{
    (void)state;
    struct outbox outbox = {0};
    struct outbox_pool pool = {0};
    size_t end = 60000, written = 0;
    for (size_t i = 0; i < end; i++)
        model[i] = (uint8_t)(i * 7);
    assert_true(outbox_put(&outbox, &pool, model, 20000));
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = span_of(model + 20000, 20000), .qos = 1});
    assert_true(outbox_put_payload(&outbox, &pool, msg));
    msg_unref(msg);
    assert_true(outbox_put(&outbox, &pool, model + 40000, 20000));
    while (written < end)
        check_write(&outbox, &pool, &written, end, 1, 64);
    assert_null(outbox.first); /* nothing is held while idle */
    outbox_pool_deinit(&pool);
}

static void pieces_are_used_again(void **state)
{
    (void)state;
    struct outbox outbox = {0};
    struct outbox_pool pool = {0};
    for (int i = 0; i < 1000; i++) {
        assert_true(outbox_put(&outbox, &pool, "abc", 3));
        outbox_consume(&outbox, &pool, 3);
    }
    assert_int_equal(pool.buffer_count, 1);
    outbox_pool_deinit(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_out_in_order),
        cmocka_unit_test(writes_of_one_byte_are_right),
        cmocka_unit_test(pieces_are_used_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
