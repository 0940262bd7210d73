#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>

#include "common/shared_buf.h"

static void references_are_counted(void **state)
{
    (void)state;
    struct shared_buf *shared = shared_buf_new_copy(SPAN_LITERAL("payload"));
    assert_non_null(shared);
    assert_true(span_equal(shared_buf_span(shared), SPAN_LITERAL("payload")));
    assert_ptr_equal(shared_buf_ref(shared), shared);
    shared_buf_ref_many(shared, 3);
    assert_int_equal(shared_buf_ref_count(shared), 5);
    for (int i = 0; i < 5; i++)
        shared_buf_unref(shared);
    shared_buf_unref(NULL);
    shared = shared_buf_new(0);
    assert_int_equal(shared->size, 0);
    shared_buf_unref(shared);
    assert_null(shared_buf_new((size_t)SHARED_BUF_SIZE_MAX + 1));
}

static void *read_and_unref(void *arg)
{
    struct shared_buf *shared = arg;
    for (int i = 0; i < 1000; i++) {
        shared_buf_ref(shared);
        if (shared->data[0] != 'x')
            return arg;
        shared_buf_unref(shared);
    }
    shared_buf_unref(shared);
    return NULL;
}

/* Whoever is last frees; the sanitizers see a mistake. */
static void threads_share_one(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        pthread_t threads[4];
        struct shared_buf *shared = shared_buf_new_copy(SPAN_LITERAL("xyz"));
        shared_buf_ref_many(shared, 4);
        for (int i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, read_and_unref, shared), 0);
        shared_buf_unref(shared);
        for (int i = 0; i < 4; i++) {
            void *failed;
            pthread_join(threads[i], &failed);
            assert_null(failed);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references_are_counted),
        cmocka_unit_test(threads_share_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
