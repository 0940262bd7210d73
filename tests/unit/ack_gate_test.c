/* The ack gate: nothing leaves early, nothing leaves out of order, nothing is lost. */
#include "broker/core/ack_gate.h"

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

static void on_release(void *arg, const struct gate_item *item, struct span extra)
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

/* What a run becomes is compared with the answers one by one. */
struct answers {
    struct gate_item expected[20000];
    uint32_t put, seen, items;
    uint32_t deliveries, delivered;
    uint64_t durable;
    struct ack_gate *gate;
    bool puts_when_released;
};

static void put_answer(struct answers *answers, struct gate_item item, uint64_t filling)
{
    answers->expected[answers->put++] = item;
    ack_gate_put(answers->gate, &item, (struct span){0, 0}, filling);
}

static void on_release_run(void *arg, const struct gate_item *item, struct span extra)
{
    struct answers *answers = arg;
    assert_int_equal(extra.size, 0);
    if (item->kind == GATE_DELIVERY) {
        assert_int_equal(item->record_index, answers->delivered++);
        assert_true(item->wait_block <= answers->durable);
        msg_unref(item->msg);
        return;
    }
    answers->items++;
    for (uint32_t i = 0; i <= item->more_count; i++, answers->seen++) {
        const struct gate_item *expected = &answers->expected[answers->seen];
        assert_true(answers->seen < answers->put);
        assert_int_equal(item->packet_id + i, expected->packet_id);
        assert_int_equal(item->client.number, expected->client.number);
        assert_int_equal(item->client.connection, expected->client.connection);
        assert_int_equal(item->wait_block, expected->wait_block);
        assert_int_equal(item->wait_retained, expected->wait_retained);
        assert_int_equal(item->packet_type, expected->packet_type);
        assert_int_equal(item->reason, expected->reason);
        assert_int_equal(item->durability, expected->durability);
        assert_int_equal(item->since_mono_ns, expected->since_mono_ns);
        assert_true(expected->wait_block <= answers->durable);
    }
    if (answers->puts_when_released) { /* what would continue the run that is just leaving stands behind it */
        answers->puts_when_released = false;
        struct gate_item next = answers->expected[answers->seen - 1];
        next.packet_id++;
        put_answer(answers, next, next.wait_block);
    }
}

static void a_run_of_answers_leaves_as_if_one_by_one(void **state)
{
    (void)state;
    static struct answers answers;
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t")});
    struct check_random random;
    check_random_init(&random, check_random_seed(18));
    struct queue_stats stats = {0};
    struct ack_gate gate;
    ack_gate_init(&gate, &stats);
    answers.gate = &gate;
    uint64_t filling = 1;
    struct gate_item item = {.kind = GATE_ACK, .client = {.number = 1, .connection = 1}, .packet_id = 65000, .wait_block = 1};
    while (answers.put < 19000) {
        unsigned action = (unsigned)check_random_below(&random, 42);
        if (action < 30)
            item.packet_id++; /* from 65535 to 0, too */
        else if (action == 30)
            item.client.number = 1 + check_random_below(&random, 2);
        else if (action == 31)
            item.client.connection = 1 + (uint32_t)check_random_below(&random, 2);
        else if (action == 32)
            item.packet_type = (uint8_t)check_random_below(&random, 2);
        else if (action == 33)
            item.reason = (uint8_t)check_random_below(&random, 2);
        else if (action == 34)
            item.durability = (uint8_t)check_random_below(&random, 2);
        else if (action == 35)
            item.since_mono_ns++;
        else if (action == 36)
            item.wait_block = check_random_chance(&random, 1, 3) ? 0 : ++filling;
        else if (action == 37)
            item.packet_id = (uint16_t)check_random_below(&random, 65536);
        item.wait_retained = action == 38 ? gate.retained_answered : 0;
        if (action == 39) {
            answers.durable += check_random_below(&random, filling - answers.durable + 1);
            ack_gate_set_durable(&gate, answers.durable);
            ack_gate_set_retained(&gate, gate.retained_answered + 1);
            answers.puts_when_released = check_random_chance(&random, 1, 3);
            (void)ack_gate_release(&gate, 1 + check_random_below(&random, 100), on_release_run, &answers);
        } else if (action >= 40) { /* between the answers of a run */
            struct gate_item delivery = {.kind = GATE_DELIVERY, .msg = msg_ref(msg), .record_index = answers.deliveries++};
            ack_gate_put(&gate, &delivery, (struct span){0, 0}, filling);
        } else {
            put_answer(&answers, item, filling);
        }
        assert_int_equal(stats.messages, answers.put - answers.seen + answers.deliveries - answers.delivered);
        assert_int_equal(ack_gate_is_empty(&gate), stats.messages == 0);
    }
    answers.durable = filling;
    ack_gate_set_durable(&gate, filling);
    assert_false(ack_gate_release(&gate, 100000, on_release_run, &answers));
    assert_int_equal(answers.seen, answers.put);
    assert_int_equal(answers.delivered, answers.deliveries);
    assert_true(answers.items < answers.put / 2);
    assert_int_equal(stats.bytes, 0);
    ack_gate_deinit(&gate);
    assert_int_equal(atomic_load(&msg->refs), 1);
    msg_unref(msg);
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
        cmocka_unit_test(a_run_of_answers_leaves_as_if_one_by_one),
        cmocka_unit_test(an_end_with_items_inside_leaks_nothing),
        cmocka_unit_test(room_ends_at_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
