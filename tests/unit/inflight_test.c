/* The inflight window against a list in order. */
#include "broker/session/inflight.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static struct msg *message(void)
{
    return msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("p"), .qos = 2});
}

struct model_entry {
    uint16_t packet_id;
    uint8_t state;
    bool is_sent;
    uint32_t meta;
};

static void matches_the_model(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    enum { MAX = 3000 };
    static struct model_entry model[MAX];
    size_t count = 0;
    struct inflight inflight = {0};
    struct msg *msg = message();
    for (uint32_t step = 0; step < 60000; step++) {
        size_t limit = step / 10000 % 2 ? MAX : 10;
        unsigned action = (unsigned)check_random_below(&random, 8);
        if (action < 3 && count < limit) {
            uint8_t qos = (uint8_t)(1 + check_random_below(&random, 2));
            struct inflight_entry *entry = inflight_add(&inflight, msg_ref(msg), step, qos);
            assert_non_null(entry);
            assert_int_not_equal(entry->packet_id, 0);
            for (size_t i = 0; i < count; i++)
                assert_int_not_equal(model[i].packet_id, entry->packet_id); /* [MQTT-2.2.1-4] */
            model[count++] = (struct model_entry){entry->packet_id, entry->state, false, step};
        } else if (action < 5 && count > 0) {
            size_t index = check_random_below(&random, count);
            struct inflight_entry *entry = inflight_find(&inflight, model[index].packet_id);
            assert_non_null(entry);
            assert_int_equal(entry->meta, model[index].meta);
            assert_int_equal(entry->state, model[index].state);
            if (entry->state == INFLIGHT_PUBLISH_2) {
                inflight_to_pubrel(&inflight, entry);
                assert_null(entry->msg);
                model[index].state = INFLIGHT_PUBREL;
            } else {
                inflight_remove(&inflight, entry);
                memmove(&model[index], &model[index + 1], (count - index - 1) * sizeof model[0]);
                count--;
            }
        } else if (action < 7) {
            size_t first = 0;
            while (first < count && model[first].is_sent)
                first++;
            struct inflight_entry *entry = inflight_next_unsent(&inflight);
            assert_int_equal(entry != NULL, first < count);
            if (entry) {
                assert_int_equal(entry->packet_id, model[first].packet_id);
                inflight_mark_sent(&inflight, entry);
                model[first].is_sent = true;
            }
        } else if (check_random_chance(&random, 1, 50)) {
            inflight_restart(&inflight);
            for (size_t i = 0; i < count; i++)
                model[i].is_sent = false;
        }
        assert_int_equal(inflight.count, count);
    }
    inflight_deinit(&inflight);
    assert_int_equal(atomic_load(&msg->refs), 1); /* every reference came back */
    msg_unref(msg);
}

static void identifiers_wrap_around_those_in_use(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    struct msg *msg = message();
    for (int i = 0; i < 65535; i++)
        assert_non_null(inflight_add(&inflight, msg_ref(msg), 0, 1));
    assert_null(inflight_add(&inflight, msg, 0, 1)); /* all taken */
    inflight_remove(&inflight, inflight_find(&inflight, 4711));
    struct inflight_entry *entry = inflight_add(&inflight, msg_ref(msg), 0, 1);
    assert_int_equal(entry->packet_id, 4711);
    inflight_deinit(&inflight);
    inflight_add(&inflight, msg_ref(msg), 0, 1);
    inflight.last_id = 65534;
    assert_int_equal(inflight_add(&inflight, msg_ref(msg), 0, 1)->packet_id, 65535);
    assert_int_equal(inflight_add(&inflight, msg_ref(msg), 0, 1)->packet_id, 2); /* 0 never, 1 in use */
    inflight_deinit(&inflight);
    msg_unref(msg);
}

static void nothing_is_kept_when_trimmed(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    struct inflight_entry *entry = inflight_add(&inflight, message(), 0, 1);
    inflight_trim(&inflight);
    assert_non_null(inflight.block); /* not empty */
    inflight_remove(&inflight, entry);
    inflight_trim(&inflight);
    assert_null(inflight.block);
    assert_int_equal(inflight_add(&inflight, message(), 0, 1)->packet_id, 2); /* identifiers go on */
    inflight_deinit(&inflight);
}

static struct msg *named(uint64_t sequence)
{
    struct msg *msg = message();
    atomic_store(&msg->sequence, sequence);
    return msg;
}

static void what_is_on_disk_is_let_go_and_given_back(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    for (uint64_t i = 1; i <= 12; i++)
        inflight_add(&inflight, named(i * 10), (uint32_t)i, i % 3 ? 1 : 2)->is_wanted = i != 5; /* 5 has no copy on disk */
    inflight_to_pubrel(&inflight, inflight_find(&inflight, 3));
    for (struct inflight_entry *entry; (entry = inflight_next_unsent(&inflight)) && entry->packet_id <= 8;)
        inflight_mark_sent(&inflight, entry);
    assert_true(inflight_let_go(&inflight, 81));
    assert_false(inflight_let_go(&inflight, 121));
    for (uint16_t id = 1; id <= 12; id++) {
        struct inflight_entry *entry = inflight_find(&inflight, id);
        assert_int_equal(entry->has_msg, id == 5);
        assert_int_equal(inflight_sequence(entry), id * 10);
        assert_ptr_equal(inflight_find_sequence(&inflight, id * 10u), entry);
    }
    inflight_restart(&inflight);
    uint64_t missing[12];
    assert_int_equal(inflight_missing(&inflight, missing, 4), 4);
    assert_int_equal(missing[1], 20);
    assert_int_equal(missing[2], 40); /* of 3 nothing is needed */
    assert_int_equal(missing[3], 60);
    assert_int_equal(inflight_missing(&inflight, missing, 12), 10);
    inflight_give(inflight_find(&inflight, 1), named(10), 77);
    assert_int_equal(inflight_missing(&inflight, missing, 12), 9);
    for (uint16_t id = 1; id <= 12; id++)
        assert_int_equal(inflight_find(&inflight, id)->is_dup, id <= 8);        /* the others were never sent */
    assert_int_equal(inflight_add(&inflight, named(130), 0, 1)->packet_id, 13); /* it grows again */
    inflight_deinit(&inflight);
}

static void position_add(void *arg, uint64_t sequence) { *(uint64_t *)arg += sequence; }

/* Packed and unpacked again it is what it was; and what may be asked of it meanwhile is answered alike. */
static void packing_changes_nothing(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(6));
    for (int round = 0; round < 300; round++) {
        struct inflight inflight = {0};
        enum { MAX = 100 };
        static struct inflight_entry before[MAX];
        uint16_t ids[MAX];
        size_t count = 0, size = 1 + check_random_below(&random, MAX);
        inflight.last_id = (uint16_t)check_random_next(&random);
        uint64_t sequence = check_random_below(&random, 2) ? 0 : UINT64_MAX / 2, sum = 0, sum_packed = 0;
        for (size_t i = 0; i < size; i++) {
            sequence += 1 + check_random_below(&random, i % 10 ? 1000 : UINT64_C(1) << 40);
            struct inflight_entry *entry = inflight_add(&inflight, named(sequence), (uint32_t)i, (uint8_t)(1 + i * (round % 3) % 2));
            ids[i] = entry->packet_id;
            entry->is_wanted = true;
            entry->is_dup = check_random_below(&random, 4) == 0;
            if (check_random_below(&random, 2) && inflight_next_unsent(&inflight) == entry)
                inflight_mark_sent(&inflight, entry);
            if (entry->state == INFLIGHT_PUBLISH_2 && check_random_below(&random, 2))
                inflight_to_pubrel(&inflight, entry);
            if (check_random_below(&random, 5) == 0)
                inflight_remove(&inflight, inflight_find(&inflight, entry->packet_id));
        }
        inflight_each_position(&inflight, position_add, &sum);
        uint64_t max = inflight_sequence_max(&inflight);
        inflight_pack(&inflight);
        assert_false(inflight.is_packed && inflight.count); /* messages are still there */
        assert_false(inflight_let_go(&inflight, UINT64_MAX));
        for (size_t i = 0; i < size; i++) {
            const struct inflight_entry *entry = inflight_find(&inflight, ids[i]);
            if (entry)
                before[count++] = *entry;
        }
        assert_int_equal(inflight.count, count);
        inflight_pack(&inflight);
        assert_int_equal(inflight.is_packed, count > 0);
        inflight_pack(&inflight);
        assert_false(inflight_let_go(&inflight, UINT64_MAX));
        inflight_each_position(&inflight, position_add, &sum_packed);
        assert_true(sum == sum_packed);
        assert_true(inflight_sequence_max(&inflight) == max);
        assert_int_equal(inflight_has_sequence(&inflight, max), count > 0);
        assert_false(inflight_has_sequence(&inflight, max + 1));
        assert_int_equal(inflight_has_later(&inflight, max - 1), count > 0);
        assert_false(inflight_has_later(&inflight, max));
        if (round % 8 > 0) {
            assert_true(inflight_unpack(&inflight));
            assert_int_equal(inflight.count, count);
            assert_int_equal(inflight.last_id, ids[size - 1]);
            inflight_restart(&inflight);
            for (size_t i = 0; i < count; i++) {
                struct inflight_entry *entry = inflight_next_unsent(&inflight);
                assert_non_null(entry);
                assert_true(inflight_sequence(entry) == before[i].sequence);
                assert_int_equal(entry->packet_id, before[i].packet_id);
                assert_int_equal(entry->state, before[i].state);
                assert_int_equal(entry->is_dup, before[i].is_dup || before[i].is_sent);
                assert_true(entry->is_wanted && !entry->has_msg && !entry->holds_quota);
                assert_ptr_equal(inflight_find(&inflight, entry->packet_id), entry);
                inflight_mark_sent(&inflight, entry);
            }
            assert_true(count == 0 || !inflight_next_unsent(&inflight));
        }
        inflight_deinit(&inflight);
    }
}

/* What the store does not have, or whose record is on its way, is needed as it is. */
static void only_what_is_on_disk_is_packed(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    inflight_add(&inflight, named(10), 1, 1)->is_wanted = true;
    struct inflight_entry *entry = inflight_add(&inflight, named(20), 1, 2);
    entry->is_wanted = true;
    entry->pending = 1;
    assert_true(inflight_let_go(&inflight, 30));
    inflight_pack(&inflight);
    assert_false(inflight.is_packed);
    inflight_find(&inflight, 2)->pending = 0;
    assert_false(inflight_let_go(&inflight, 30));
    inflight_add(&inflight, named(25), 1, 1); /* the store never has it */
    assert_false(inflight_let_go(&inflight, 30));
    inflight_pack(&inflight);
    assert_false(inflight.is_packed);
    inflight_remove(&inflight, inflight_find(&inflight, 3));
    inflight_pack(&inflight);
    assert_true(inflight.is_packed);
    inflight_deinit(&inflight);
}

static void it_is_made_again_from_what_was_sent(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    assert_true(inflight_restore(&inflight, 100, 7, false));
    assert_true(inflight_restore(&inflight, 90, 9, true));
    assert_true(inflight_restore(&inflight, 0, 11, false));
    assert_false(inflight_restore(&inflight, 110, 7, false)); /* taken */
    assert_false(inflight_restore(&inflight, 110, 0, false));
    assert_int_equal(inflight.count, 3);
    assert_int_equal(inflight_find(&inflight, 7)->state, INFLIGHT_PUBLISH_2);
    assert_int_equal(inflight_find(&inflight, 9)->state, INFLIGHT_PUBREL);
    assert_int_equal(inflight_find(&inflight, 11)->state, INFLIGHT_PUBREL);
    uint64_t missing[3];
    assert_int_equal(inflight_missing(&inflight, missing, 3), 1);
    assert_int_equal(missing[0], 100);
    assert_int_equal(inflight_next_unsent(&inflight)->packet_id, 7);
    assert_int_equal(inflight_add(&inflight, named(130), 0, 1)->packet_id, 12);
    inflight_deinit(&inflight);
}

/* As a start does it, with identifiers for all of it, and asking for sequences in any order as well. */
static void one_of_many_is_found_where_it_stands(void **state)
{
    (void)state;
    enum { COUNT = 30000 };
    for (int is_mixed = 0; is_mixed < 2; is_mixed++) {
        struct inflight inflight = {0};
        for (uint64_t i = 1; i <= COUNT; i++) /* mixed: one was sent after one that is newer */
            assert_true(inflight_restore(&inflight, is_mixed && (i == 100 || i == 101) ? 2 * (201 - i) : 2 * i, (uint16_t)i, false));
        uint64_t asked = is_mixed ? 500 : 2 * COUNT - 1;
        for (uint64_t s = 1; s <= asked; s++) {
            assert_true(inflight_has_later(&inflight, s));
            assert_int_equal(inflight_has_sequence(&inflight, s), s % 2 == 0);
            if (s % 2 != 0) {
                assert_true(inflight_restore_before_later(&inflight, s));
                assert_true(inflight_has_sequence(&inflight, s));
            }
        }
        assert_int_equal(inflight_sequence_max(&inflight), 2 * COUNT);
        assert_true(inflight_has_sequence(&inflight, 7));
        assert_true(inflight_has_sequence(&inflight, 2 * COUNT));
        assert_false(inflight_has_sequence(&inflight, 2 * COUNT + 1));
        assert_true(inflight_has_sequence(&inflight, 1));
        inflight_remove(&inflight, inflight_find_sequence(&inflight, 1));
        inflight_remove(&inflight, inflight_find_sequence(&inflight, 2 * COUNT));
        assert_false(inflight_has_sequence(&inflight, 1));
        assert_false(inflight_has_sequence(&inflight, 2 * COUNT));
        assert_true(inflight_has_sequence(&inflight, 2));
        assert_int_equal(inflight_sequence_max(&inflight), 2 * COUNT - (is_mixed ? 2 : 1));
        inflight_pack(&inflight);
        assert_true(inflight.is_packed);
        assert_true(inflight_unpack(&inflight));
        uint64_t next = 2;
        for (struct inflight_entry *entry; (entry = inflight_next_unsent(&inflight)); inflight_mark_sent(&inflight, entry)) {
            assert_int_equal(inflight_sequence(entry), next);
            next += is_mixed && next >= asked ? 2 : 1;
        }
        assert_int_equal(next, 2 * COUNT);
        inflight_deinit(&inflight);
    }
}

static void what_was_sent_before_goes_before_it_again(void **state)
{
    (void)state;
    struct inflight inflight = {0};
    assert_false(inflight_has_later(&inflight, 1));
    assert_true(inflight_restore(&inflight, 100, 2, false));
    assert_true(inflight_restore(&inflight, 0, 3, false)); /* has no name */
    assert_true(inflight_restore(&inflight, 95, 1, true)); /* sent later, though it is older: 97 may be its publisher's next */
    assert_true(inflight_restore(&inflight, 120, 4, false));
    const uint64_t wanted[] = {70, 90, 97, 110, 119, 121, 130}, order[] = {0, 70, 90, 95, 97, 100, 110, 119, 120};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        assert_int_equal(inflight_has_later(&inflight, wanted[i]), wanted[i] < 120);
        if (wanted[i] < 120)
            assert_true(inflight_restore_before_later(&inflight, wanted[i]));
    }
    uint64_t missing[9];
    assert_int_equal(inflight_missing(&inflight, missing, 9), 7); /* more than the first block held */
    assert_int_equal(inflight.count, 9);
    bool has_id[16] = {0};
    for (size_t i = 0; i < 9; i++) {
        struct inflight_entry *entry = inflight_next_unsent(&inflight);
        assert_int_equal(inflight_sequence(entry), order[i]);
        assert_int_equal(entry->is_dup, order[i] == 100 || order[i] == 0 || order[i] == 95 || order[i] == 120); /* known to be sent */
        assert_false(has_id[entry->packet_id]);
        assert_ptr_equal(inflight_find(&inflight, entry->packet_id), entry);
        has_id[entry->packet_id] = true;
        inflight_mark_sent(&inflight, entry);
    }
    assert_null(inflight_next_unsent(&inflight));
    inflight_restart(&inflight);
    assert_true(inflight_find_sequence(&inflight, 70)->is_dup);
    inflight_remove(&inflight, inflight_find(&inflight, 3)); /* the first of the order */
    assert_int_equal(inflight_sequence(inflight_next_unsent(&inflight)), 70);
    inflight_deinit(&inflight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_the_model),
        cmocka_unit_test(identifiers_wrap_around_those_in_use),
        cmocka_unit_test(nothing_is_kept_when_trimmed),
        cmocka_unit_test(what_is_on_disk_is_let_go_and_given_back),
        cmocka_unit_test(packing_changes_nothing),
        cmocka_unit_test(only_what_is_on_disk_is_packed),
        cmocka_unit_test(it_is_made_again_from_what_was_sent),
        cmocka_unit_test(one_of_many_is_found_where_it_stands),
        cmocka_unit_test(what_was_sent_before_goes_before_it_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
