#include "broker/guard/cpu_pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static _Atomic int ran, done, expired_count;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void on_run(struct cpu_job *job)
{
    (void)job;
    atomic_fetch_add(&ran, 1);
}
static void on_run_gated(struct cpu_job *job)
{
    on_run(job);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
}
static void on_done(struct cpu_job *job, bool expired)
{
    (void)job;
    if (expired)
        atomic_fetch_add(&expired_count, 1);
    atomic_fetch_add(&done, 1);
}

static struct cpu_pool *pool_new(unsigned threads, unsigned queue_max)
{
    struct cpu_pool *pool;
    atomic_store(&ran, 0);
    atomic_store(&done, 0);
    atomic_store(&expired_count, 0);
    assert_int_equal(cpu_pool_new(&pool, &(struct cpu_pool_config){"test", threads, queue_max, 0}), 0);
    return pool;
}

static void runs_every_job_once(void **state)
{
    (void)state;
    struct cpu_pool *pool = pool_new(3, 1000);
    struct cpu_job jobs[300] = {0};
    for (int i = 0; i < 300; i++) {
        jobs[i] = (struct cpu_job){.run = on_run, .done = on_done, .deadline_ns = INT64_MAX, .bytes = 10};
        assert_true(cpu_pool_try_submit(pool, &jobs[i]));
    }
    while (atomic_load(&done) < 300)
        usleep(100);
    assert_int_equal(atomic_load(&ran), 300);
    assert_int_equal(atomic_load(&expired_count), 0);
    cpu_pool_free(pool);
}

static void refuses_when_full_and_does_not_run_what_is_late(void **state)
{
    (void)state;
    struct cpu_pool *pool = pool_new(1, 2);
    struct cpu_job jobs[4];
    for (int i = 0; i < 4; i++)
        jobs[i] =
            (struct cpu_job){.run = i == 0 ? on_run_gated : on_run, .done = on_done, .deadline_ns = i == 1 ? 1 : INT64_MAX, .bytes = 10};
    pthread_mutex_lock(&gate);
    assert_true(cpu_pool_try_submit(pool, &jobs[0]));
    while (atomic_load(&ran) < 1)
        usleep(100);
    assert_true(cpu_pool_try_submit(pool, &jobs[1]));
    assert_true(cpu_pool_try_submit(pool, &jobs[2]));
    assert_false(cpu_pool_try_submit(pool, &jobs[3]));
    assert_int_equal(cpu_pool_get_stats(pool)->queue.messages, 2);
    assert_int_equal(cpu_pool_get_stats(pool)->queue.bytes, 20);
    pthread_mutex_unlock(&gate);
    while (atomic_load(&done) < 3)
        usleep(100);
    assert_int_equal(atomic_load(&ran), 2);
    assert_int_equal(atomic_load(&expired_count), 1);
    assert_int_equal(counter_get(&cpu_pool_get_stats(pool)->refused), 1);
    cpu_pool_free(pool);
}

static void gives_back_what_waits_at_the_end(void **state)
{
    (void)state;
    struct cpu_pool *pool = pool_new(1, 10);
    struct cpu_job jobs[5];
    pthread_mutex_lock(&gate);
    for (int i = 0; i < 5; i++) {
        jobs[i] = (struct cpu_job){.run = i == 0 ? on_run_gated : on_run, .done = on_done, .deadline_ns = INT64_MAX};
        assert_true(cpu_pool_try_submit(pool, &jobs[i]));
    }
    while (atomic_load(&ran) < 1)
        usleep(100);
    pthread_mutex_unlock(&gate);
    cpu_pool_free(pool);
    assert_int_equal(atomic_load(&done), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_every_job_once),
        cmocka_unit_test(refuses_when_full_and_does_not_run_what_is_late),
        cmocka_unit_test(gives_back_what_waits_at_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
