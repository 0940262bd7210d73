/* What a session remembers beside its queues and filters: identifiers of messages, newer topics, requests under way. */
#include "broker/session/session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void identifiers_are_packed(void **state)
{
    (void)state;
    struct session sess = {0};
    const uint32_t *ids;
    uint32_t one;
    uint32_t none = session_pack_meta(&sess, 1, true, NULL, 0);
    assert_int_equal(session_unpack_ids(&sess, &ids, &one, none), 0);
    uint32_t single = session_pack_meta(&sess, 2, false, (uint32_t[]){268435455}, 1);
    assert_int_equal(session_unpack_ids(&sess, &ids, &one, single), 1);
    assert_int_equal(ids[0], 268435455);
    assert_null(sess.rare); /* neither needs memory */
    uint32_t first = session_pack_meta(&sess, 1, false, (uint32_t[]){1, 2}, 2),
             second = session_pack_meta(&sess, 1, true, (uint32_t[]){1, 2, 3}, 3);
    assert_int_equal(session_pack_meta(&sess, 1, false, (uint32_t[]){1, 2}, 2), first); /* the same set */
    assert_int_equal(session_unpack_ids(&sess, &ids, &one, second), 3);
    assert_int_equal(ids[2], 3);
    assert_true(queue_meta_retain(second));
    assert_int_equal(session_unpack_ids(&sess, &ids, &one, first), 2);
    sess.inflight.count = 1; /* some message may refer to them */
    for (uint32_t i = 0; i < 2 * SESSION_ID_SETS_MAX; i++)
        session_pack_meta(&sess, 1, false, (uint32_t[]){i, i + 1, 7, 7}, 4);
    assert_int_equal(sess.rare->id_set_count, SESSION_ID_SETS_MAX);
    sess.inflight.count = 0;
    session_rare_trim(&sess); /* no message refers to them */
    assert_null(sess.rare);
    session_deinit(&sess);
}

static void stale_values_are_known(void **state)
{
    (void)state;
    struct session sess = {0};
    struct msg *old = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .receive_wall_ns = 100});
    struct msg *fresh = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .receive_wall_ns = 200});
    assert_false(session_has_newer(&sess, 5, old, 7, 0));
    session_rare_get(&sess);
    session_note_newer(&sess, 5, fresh, 7, 0);
    assert_true(session_has_newer(&sess, 5, old, 7, 0));
    assert_false(session_has_newer(&sess, 5, fresh, 7, 0)); /* the same one is not newer than itself */
    assert_false(session_has_newer(&sess, 7, old, 7, 0));
    assert_false(session_has_newer(&sess, 5, old, 8, 0)); /* that was before somebody asked */
    old->retained_number = 9;
    fresh->retained_number = 10;
    session_note_newer(&sess, 9, old, 7, 0);
    assert_false(session_has_newer(&sess, 9, fresh, 7, 0));
    assert_true(session_has_newer(&sess, 9, old, 7, 0));  /* it came live */
    assert_false(session_has_newer(&sess, 9, old, 8, 0)); /* and is asked for again */
    session_note_newer(&sess, 13, fresh, 7, 0);
    assert_true(session_has_newer(&sess, 13, old, 8, 0)); /* a later value: whoever asked had asked before it */
    session_forget_newer(&sess, 13, old);                 /* not the one that was noted */
    assert_true(session_has_newer(&sess, 13, old, 7, 0));
    session_forget_newer(&sess, 13, fresh); /* it was dropped */
    assert_false(session_has_newer(&sess, 13, old, 7, 0));
    assert_false(session_has_newer(&sess, 13, fresh, 7, 0));
    session_forget_newer(&sess, 15, fresh); /* never noted */
    struct msg *newest = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .receive_wall_ns = 300});
    newest->retained_number = 11;
    session_note_newer(&sess, 17, fresh, 7, 0);
    session_note_newer(&sess, 17, newest, 7, 0);
    session_forget_newer(&sess, 17, newest);
    assert_true(session_has_newer(&sess, 17, old, 7, 0)); /* the one before it was not dropped */
    assert_false(session_has_newer(&sess, 17, newest, 7, 0));
    msg_unref(newest);
    session_note_newer(&sess, 11, fresh, 7, 3); /* at QoS 0, on the third connection */
    assert_true(session_has_newer(&sess, 11, old, 7, 3));
    assert_false(session_has_newer(&sess, 11, old, 7, 4));
    assert_false(session_has_newer(&sess, 11, old, 7, 0));
    session_note_newer(&sess, 11, old, 7, 0); /* this one comes for certain, and is no newer than itself */
    assert_false(session_has_newer(&sess, 11, fresh, 7, 3));
    for (uint64_t hash = 100; hash < 100 + 3 * SESSION_NEWER_MAX; hash++)
        session_note_newer(&sess, hash * 2654435769u, fresh, 7, 0);
    assert_true(sess.rare->newer_count <= SESSION_NEWER_MAX); /* bounded */
    assert_true(session_has_newer(&sess, 5, old, 7, 0));
    session_deinit(&sess);
    msg_unref(old);
    msg_unref(fresh);
}

static void numbers_are_never_zero_and_differ(void **state)
{
    (void)state;
    assert_int_equal(session_number_of(0, 1), 1);
    assert_true(session_number_of(1, SESSION_NUMBER_COUNTER_MAX) + 1 < session_number_of(2, 1));
    assert_true(session_number_of(SESSION_NUMBER_EPOCH_MAX, SESSION_NUMBER_COUNTER_MAX) == UINT64_MAX);
    assert_int_equal(SESSION_NUMBER_EPOCH_MAX, 4194303);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identifiers_are_packed),
        cmocka_unit_test(stale_values_are_known),
        cmocka_unit_test(numbers_are_never_zero_and_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
