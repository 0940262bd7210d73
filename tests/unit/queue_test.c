/* The session queue with a store that is an array: order, bounds and counts. */
#include "broker/session/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static struct msg *message(uint32_t number)
{
    return msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = span_of(&number, sizeof number), .qos = 1});
}
static uint32_t number_of(const struct msg *msg)
{
    uint32_t number;
    memcpy(&number, msg_payload(msg).data, sizeof number);
    return number;
}

static void order_is_kept_through_the_store(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(9));
    static struct store_item store[100000];
    size_t store_first = 0, store_end = 0;
    struct queue queue = {0};
    struct queue_limits limits = {.messages_max = 500, .bytes_max = UINT64_MAX};
    uint32_t pushed = 0, popped = 0, asked = 0;
    for (int step = 0; step < 100000; step++) {
        bool is_online = step / 1000 % 3 != 0;
        unsigned action = (unsigned)check_random_below(&random, 4);
        if (action < 2) {
            struct msg *msg = message(pushed);
            enum queue_result result = queue_push(&queue, msg, pushed, &limits, is_online);
            if (result == QUEUE_TO_STORE)
                store[store_end++] = (struct store_item){msg_ref(msg), pushed};
            assert_int_equal(result == QUEUE_FULL_MESSAGES, pushed - popped == limits.messages_max);
            pushed += result != QUEUE_FULL_MESSAGES;
            msg_unref(msg);
        } else if (action == 2 && is_online && queue_first(&queue)) {
            assert_int_equal(number_of(queue_first(&queue)->msg), popped);
            struct queue_item item = queue_pop(&queue);
            assert_int_equal(item.meta, popped++);
            msg_unref(item.msg);
        } else if (queue.is_loading && check_random_chance(&random, 1, 3)) {
            uint32_t count = (uint32_t)(store_end - store_first < asked ? store_end - store_first : asked);
            count = (uint32_t)(1 + check_random_below(&random, count)); /* the store may give fewer */
            struct store_page *page = malloc(sizeof *page + count * sizeof page->items[0]);
            page->count = count;
            for (uint32_t i = 0; i < count; i++)
                page->items[i] = store[store_first++];
            uint32_t dropped = 1;
            assert_true(queue_on_loaded(&queue, &dropped, page));
            assert_int_equal(dropped, 0);
        } else if (is_online && queue_load_count(&queue) > 0) {
            asked = queue_load_count(&queue);
            assert_true(asked + queue.resident <= QUEUE_RESIDENT_MAX);
            queue.is_loading = true;
        }
        assert_int_equal(queue_count(&queue), pushed - popped);
        assert_int_equal(queue.bytes, (pushed - popped) * (sizeof(struct msg) + 5));
        assert_true(queue.resident <= QUEUE_RESIDENT_MAX);
    }
    assert_true(popped > 1000);
    queue_deinit(&queue);
    while (store_first < store_end)
        msg_unref(store[store_first++].msg);
}

static void bounds_are_on_messages_and_bytes(void **state)
{
    (void)state;
    struct queue queue = {0};
    struct msg *msg = message(1);
    struct queue_limits two = {.messages_max = 2, .bytes_max = UINT64_MAX};
    assert_int_equal(queue_push(&queue, msg, 0, &two, true), QUEUE_RESIDENT);
    assert_int_equal(queue_push(&queue, msg, 0, &two, true), QUEUE_RESIDENT);
    assert_int_equal(queue_push(&queue, msg, 0, &two, true), QUEUE_FULL_MESSAGES);
    struct queue_limits bytes = {.messages_max = 100, .bytes_max = 3 * msg_cost(msg) - 1};
    assert_int_equal(queue_push(&queue, msg, 0, &bytes, true), QUEUE_FULL_BYTES);
    bytes.bytes_max++;
    assert_int_equal(queue_push(&queue, msg, 0, &bytes, true), QUEUE_RESIDENT);
    queue_deinit(&queue);
    assert_int_equal(atomic_load(&msg->refs), 1);
    msg_unref(msg);
}

static void an_offline_window_is_short(void **state)
{
    (void)state;
    struct queue queue = {0};
    struct msg *msg = message(1);
    struct queue_limits limits = {.messages_max = 1000, .bytes_max = UINT64_MAX};
    for (int i = 0; i < 100; i++)
        assert_int_equal(queue_push(&queue, msg, 0, &limits, false), i < QUEUE_RESIDENT_OFFLINE_MAX ? QUEUE_RESIDENT : QUEUE_TO_STORE);
    assert_int_equal(queue.capacity, QUEUE_RESIDENT_OFFLINE_MAX);
    while (queue_first(&queue))
        msg_unref(queue_pop(&queue).msg);
    assert_null(queue.items); /* nothing is allocated while it is empty */
    queue_deinit(&queue);
    msg_unref(msg);
}

static void meta_holds_what_it_is_given(void **state)
{
    (void)state;
    for (uint8_t qos = 0; qos < 3; qos++)
        for (int retain = 0; retain < 2; retain++) {
            uint32_t meta = queue_meta(qos, retain, 268435455);
            assert_int_equal(queue_meta_qos(meta), qos);
            assert_int_equal(queue_meta_retain(meta), retain);
            assert_int_equal(meta & QUEUE_META_ID_MASK, 268435455);
            assert_false(meta & QUEUE_META_IS_SET);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_kept_through_the_store),
        cmocka_unit_test(bounds_are_on_messages_and_bytes),
        cmocka_unit_test(an_offline_window_is_short),
        cmocka_unit_test(meta_holds_what_it_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
