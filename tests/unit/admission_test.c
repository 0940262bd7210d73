#include "broker/guard/admission.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define MS INT64_C(1000000)
#define S (1000 * MS)

static void admits_all_without_a_limit(void **state)
{
    (void)state;
    struct admission_bucket bucket;
    int64_t until;
    admission_init(&bucket, ADMISSION_UNLIMITED, 1);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(admission_take(&bucket, &until, 5, 0), ADMISSION_ADMIT);
    assert_int_equal(atomic_load(&bucket.admitted), 1000);
}

static void admits_a_burst_and_then_the_rate(void **state)
{
    (void)state;
    struct admission_bucket bucket;
    int64_t until;
    admission_init(&bucket, 100, 5); /* one each 10 ms */
    for (int i = 0; i < 5; i++)
        assert_int_equal(admission_take(&bucket, &until, 0, 0), ADMISSION_ADMIT);
    assert_int_equal(admission_take(&bucket, &until, 0, 0), ADMISSION_REJECT);
    assert_int_equal(until, 10 * MS);
    assert_int_equal(admission_take(&bucket, &until, 10 * MS - 1, 0), ADMISSION_REJECT);
    assert_int_equal(admission_take(&bucket, &until, 10 * MS, 0), ADMISSION_ADMIT);
    assert_int_equal(admission_take(&bucket, &until, 10 * MS, 0), ADMISSION_REJECT);
    /* A long quiet time gives back the burst and no more. */
    int admitted = 0;
    for (int i = 0; i < 20; i++)
        admitted += admission_take(&bucket, &until, 100 * S, 0) == ADMISSION_ADMIT;
    assert_int_equal(admitted, 5);
}

static void gives_each_deferred_one_its_own_place(void **state)
{
    (void)state;
    struct admission_bucket bucket;
    int64_t until, last = 0;
    admission_init(&bucket, 100, 1);
    assert_int_equal(admission_take(&bucket, &until, 0, 50 * MS), ADMISSION_ADMIT);
    for (int i = 1; i <= 5; i++) {
        assert_int_equal(admission_take(&bucket, &until, 0, 50 * MS), ADMISSION_DEFER);
        assert_int_equal(until, i * 10 * MS);
        assert_true(until > last);
        last = until;
    }
    /* The sixth would wait longer than it may, and takes nothing. */
    for (int i = 0; i < 3; i++)
        assert_int_equal(admission_take(&bucket, &until, 0, 50 * MS), ADMISSION_REJECT);
    assert_int_equal(admission_take(&bucket, &until, 10 * MS, 50 * MS), ADMISSION_DEFER);
    assert_int_equal(until, 60 * MS);
    assert_int_equal(atomic_load(&bucket.rejected), 3);
}

static void gives_back(void **state)
{
    (void)state;
    struct admission_bucket bucket;
    int64_t until;
    admission_init(&bucket, 1000, 1);
    assert_int_equal(admission_take(&bucket, &until, 0, 0), ADMISSION_ADMIT);
    admission_give_back(&bucket);
    assert_int_equal(admission_take(&bucket, &until, 0, 0), ADMISSION_ADMIT);
    assert_int_equal(admission_take(&bucket, &until, 0, 0), ADMISSION_REJECT);
}

static void takes_nothing_from_the_first_when_the_second_rejects(void **state)
{
    (void)state;
    struct admission_bucket listener, process;
    int64_t until;
    admission_init(&listener, 1000, 10);
    admission_init(&process, 10, 1);
    assert_int_equal(admission_take_both(&listener, &process, &until, 0, 0), ADMISSION_ADMIT);
    for (int i = 0; i < 50; i++)
        assert_int_equal(admission_take_both(&listener, &process, &until, 0, 0), ADMISSION_REJECT);
    assert_int_equal(until, 100 * MS);
    for (int i = 0; i < 9; i++)
        assert_int_equal(admission_take(&listener, &until, 0, 0), ADMISSION_ADMIT);
    assert_int_equal(admission_take(&listener, &until, 0, 0), ADMISSION_REJECT);
}

static void the_later_of_two_places_counts(void **state)
{
    (void)state;
    struct admission_bucket listener, process;
    int64_t until;
    admission_init(&listener, 100, 1);
    admission_init(&process, 10, 1);
    assert_int_equal(admission_take_both(&listener, &process, &until, 0, S), ADMISSION_ADMIT);
    assert_int_equal(admission_take_both(&listener, &process, &until, 0, S), ADMISSION_DEFER);
    assert_int_equal(until, 100 * MS);
}

/* However many threads ask: in a virtual second never more than burst + rate. */
#define THREADS 4
#define TRIES 20000
static struct admission_bucket shared;

static void *ask(void *arg)
{
    uintptr_t admitted = 0;
    (void)arg;
    for (int i = 0; i < TRIES; i++) {
        int64_t until;
        admitted += admission_take(&shared, &until, (int64_t)i * S / TRIES, 0) == ADMISSION_ADMIT;
    }
    return (void *)admitted;
}

static void counts_exactly_over_threads(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    uintptr_t sum = 0;
    admission_init(&shared, 500, 50);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask, NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        void *admitted;
        pthread_join(threads[i], &admitted);
        sum += (uintptr_t)admitted;
    }
    /* Threads whose clock lags behind can only be told to wait, so the sum never exceeds the bound; the one furthest ahead reaches it. */
    assert_true(sum <= 50 + 500);
    assert_true(sum >= 50 + 490);
    assert_int_equal(sum, atomic_load(&shared.admitted));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(admits_all_without_a_limit),
        cmocka_unit_test(admits_a_burst_and_then_the_rate),
        cmocka_unit_test(gives_each_deferred_one_its_own_place),
        cmocka_unit_test(gives_back),
        cmocka_unit_test(takes_nothing_from_the_first_when_the_second_rejects),
        cmocka_unit_test(the_later_of_two_places_counts),
        cmocka_unit_test(counts_exactly_over_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
