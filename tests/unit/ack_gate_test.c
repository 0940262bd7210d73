/* The ack gate: nothing leaves early, nothing leaves out of order, nothing is lost. */
#include "broker/durable/ack_gate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

/* What the log says where an own block begins: anything that grows. */
#define FIRST_OF(block) ((block)*1000 + 7)

struct seen {
    uint32_t next;
    uint64_t durable, retained;
    uint64_t copies;
};

static uint64_t waits[20000], waits_retained[20000];

static uint64_t on_release(void *arg, const struct gate_item *item, struct span extra)
{
    struct seen *seen = arg;
    assert_int_equal(item->client.number, seen->next);
    assert_true(waits[seen->next] <= seen->durable);
    assert_true(waits_retained[seen->next] <= seen->retained);
    assert_int_equal(extra.size, item->extra_size);
    for (size_t i = 0; i < extra.size; i++)
        assert_int_equal(extra.data[i], (uint8_t)(seen->next + i));
    if (item->msg)
        assert_int_equal(atomic_load(&item->msg->sequence), item->wait_block ? FIRST_OF(item->wait_block) + item->record_index : 0);
    seen->next++;
    seen->copies += item->copy_count;
    msg_unref(item->msg);
    return 0;
}

static void leaves_in_order_when_both_conditions_hold(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(17));
    struct queue_stats stats = {0};
    struct ack_gate gate;
    ack_gate_init(&gate, &stats);
    struct seen seen = {0};
    uint32_t put = 0;
    uint64_t filling = 1, asked = 0, copies = 0;
    static uint8_t extra[100000];
    while (put < 20000) {
        unsigned action = (unsigned)check_random_below(&random, 8);
        if (action < 4) {
            struct gate_item item = {.client = {.number = put}, .kind = GATE_ACK, .since_mono_ns = put};
            item.wait_block = check_random_chance(&random, 2, 3) ? filling : 0; /* an answer without a record waits for nothing itself */
            item.wait_retained = check_random_chance(&random, 1, 5) ? ++asked : 0;
            if (check_random_chance(&random, 1, 3)) {
                item.kind = GATE_DELIVERY;
                item.extra_size = (uint32_t)(check_random_chance(&random, 1, 50) ? check_random_below(&random, sizeof extra)
                                                                                 : check_random_below(&random, 200));
                item.record_index = (uint32_t)check_random_below(&random, 900);
                item.copy_count = (uint32_t)check_random_below(&random, 5);
                item.msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t")});
                copies += item.copy_count;
            }
            for (uint32_t i = 0; i < item.extra_size; i++)
                extra[i] = (uint8_t)(put + i);
            waits[put] = item.wait_block;
            waits_retained[put++] = item.wait_retained;
            ack_gate_put(&gate, &item, span_of(extra, item.extra_size), filling);
        } else if (action < 6) {
            filling++;
        } else if (action < 7) {
            for (uint64_t more = check_random_below(&random, filling - seen.durable); more > 0; more--, seen.durable++)
                ack_gate_set_sequence(&gate, seen.durable + 1, FIRST_OF(seen.durable + 1));
            ack_gate_set_durable(&gate, seen.durable);
            seen.retained += check_random_below(&random, asked - seen.retained + 1);
            ack_gate_set_retained(&gate, seen.retained);
        } else {
            uint32_t before = seen.next;
            size_t budget = 1 + check_random_below(&random, 40);
            bool more = ack_gate_release(&gate, budget, on_release, &seen);
            assert_true(seen.next - before <= budget);
            /* What is left cannot leave, or the budget ended it. */
            if (seen.next < put)
                assert_int_equal(more, waits[seen.next] <= seen.durable && waits_retained[seen.next] <= seen.retained);
        }
        assert_int_equal(stats.messages, put - seen.next);
        assert_int_equal(gate.copies, copies - seen.copies);
        if (stats.messages)
            assert_int_equal(stats.oldest_ns, seen.next);
    }
    for (; seen.durable < filling; seen.durable++)
        ack_gate_set_sequence(&gate, seen.durable + 1, FIRST_OF(seen.durable + 1));
    seen.retained = asked;
    ack_gate_set_durable(&gate, filling);
    ack_gate_set_retained(&gate, asked);
    assert_false(ack_gate_release(&gate, 100000, on_release, &seen));
    assert_int_equal(seen.next, put);
    assert_int_equal(stats.bytes, 0);
    assert_true(ack_gate_is_empty(&gate));
    ack_gate_deinit(&gate);
}

static void an_end_with_items_inside_leaks_nothing(void **state)
{
    (void)state;
    struct queue_stats stats = {0};
    struct ack_gate gate;
    ack_gate_init(&gate, &stats);
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t")});
    for (int i = 0; i < 5000; i++)
        ack_gate_put(&gate, &(struct gate_item){.kind = GATE_DELIVERY, .msg = msg_ref(msg), .extra_size = 40, .wait_block = 1},
                     span_of((uint8_t[40]){0}, 40), 1);
    ack_gate_deinit(&gate);
    assert_int_equal(atomic_load(&msg->refs), 1);
    msg_unref(msg);
}

static void room_ends_at_the_bound(void **state)
{
    (void)state;
    struct queue_stats stats = {0};
    struct ack_gate gate;
    ack_gate_init(&gate, &stats);
    assert_true(ack_gate_has_room(&gate, UINT64_MAX / 2)); /* one may always go in */
    static uint8_t payload[1 << 20];
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = span_of(payload, sizeof payload)});
    int count = 0;
    for (; ack_gate_has_room(&gate, sizeof payload); count++)
        ack_gate_put(&gate, &(struct gate_item){.kind = GATE_DELIVERY, .msg = msg_ref(msg), .wait_block = 1}, (struct span){0, 0}, 1);
    assert_true(count >= 62 && count <= 64);
    ack_gate_deinit(&gate);
    msg_unref(msg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaves_in_order_when_both_conditions_hold),
        cmocka_unit_test(an_end_with_items_inside_leaks_nothing),
        cmocka_unit_test(room_ends_at_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
