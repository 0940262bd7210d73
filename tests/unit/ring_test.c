/* The ring: FIFO, bounds and wrap-around beside a plain model; two threads handing over with the sleep and wake protocol (run under TSan).
 */
#include "common/ring.h"

#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

struct test_op {
    uint32_t type;
    uint64_t value;
    uint8_t padding[12];
};

static void pushes_and_pops_like_a_queue(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(1));
    struct ring ring;
    assert_int_equal(ring_init(&ring, 8, sizeof(struct test_op)), ERR_OK);
    uint64_t pushed = 0, popped = 0;
    for (int step = 0; step < 20000; step++) {
        struct test_op ops[8] = {0};
        switch (check_random_below(&random, 3)) {
        case 0:
            ops[0].value = pushed;
            assert_int_equal(ring_try_push(&ring, &ops[0]), pushed - popped < 8);
            pushed += pushed - popped < 8;
            break;
        case 1:
            assert_int_equal(ring_try_pop(&ring, &ops[0]), pushed > popped);
            if (pushed > popped)
                assert_int_equal(ops[0].value, popped++);
            break;
        default: {
            size_t max = (size_t)check_random_below(&random, 8) + 1;
            size_t count = ring_pop_batch(&ring, ops, max);
            assert_int_equal(count, pushed - popped < max ? pushed - popped : max);
            for (size_t i = 0; i < count; i++)
                assert_int_equal(ops[i].value, popped++);
        }
        }
        assert_int_equal(ring_count(&ring), pushed - popped);
        assert_int_equal(ring_free_count(&ring), 8 - (pushed - popped));
    }
    ring_deinit(&ring);
}

#define PRODUCERS 2
#define OPS_EACH 50000

struct hand_over {
    struct ring rings[PRODUCERS];
    struct ring_waker waker;
    sem_t wake;
    _Atomic uint64_t wakes;
};

struct producer {
    struct hand_over *shared;
    int index;
};

/* The op's value is a heap block, written before the push and read after the pop: what ThreadSanitizer would report on a broken hand-off.
 */
static void *produce(void *arg)
{
    struct producer *self = arg;
    struct ring *ring = &self->shared->rings[self->index];
    for (uint64_t i = 0; i < OPS_EACH;) {
        size_t batch = 1 + i % 7;
        for (; batch > 0 && i < OPS_EACH; batch--, i++) {
            uint64_t *value = malloc(sizeof *value);
            *value = i;
            while (!ring_try_push(ring, &value)) {
                if (ring_waker_wake_needed(&self->shared->waker))
                    sem_post(&self->shared->wake);
                sched_yield();
            }
        }
        if (ring_waker_wake_needed(&self->shared->waker)) {
            atomic_fetch_add_explicit(&self->shared->wakes, 1, memory_order_relaxed);
            sem_post(&self->shared->wake);
        }
    }
    return NULL;
}

static void no_op_is_lost_and_no_wake_is_missed(void **state)
{
    (void)state;
    struct hand_over shared = {0};
    ring_waker_init(&shared.waker);
    sem_init(&shared.wake, 0, 0);
    pthread_t threads[PRODUCERS];
    struct producer producers[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) {
        assert_int_equal(ring_init(&shared.rings[i], 64, sizeof(uint64_t *)), ERR_OK);
        producers[i] = (struct producer){&shared, i};
    }
    for (int i = 0; i < PRODUCERS; i++)
        pthread_create(&threads[i], NULL, produce, &producers[i]);
    uint64_t next[PRODUCERS] = {0}, total = 0;
    while (total < (uint64_t)PRODUCERS * OPS_EACH) {
        uint64_t *batch[16];
        size_t found = 0;
        for (int i = 0; i < PRODUCERS; i++) {
            size_t count = ring_pop_batch(&shared.rings[i], batch, 16);
            for (size_t j = 0; j < count; j++) {
                assert_int_equal(*batch[j], next[i]++);
                free(batch[j]);
            }
            found += count;
        }
        total += found;
        if (found > 0)
            continue;
        ring_waker_sleep(&shared.waker);
        bool empty = true;
        for (int i = 0; i < PRODUCERS; i++)
            empty = empty && ring_count(&shared.rings[i]) == 0;
        if (empty && total < (uint64_t)PRODUCERS * OPS_EACH)
            sem_wait(&shared.wake); /* a missed wake hangs here */
        ring_waker_awake(&shared.waker);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
        ring_deinit(&shared.rings[i]);
    }
    sem_destroy(&shared.wake);
}

static void a_wake_is_asked_for_once_and_only_when_asleep(void **state)
{
    (void)state;
    struct ring_waker waker = {0};
    assert_false(ring_waker_wake_needed(&waker));
    ring_waker_sleep(&waker);
    assert_true(ring_waker_wake_needed(&waker));
    assert_false(ring_waker_wake_needed(&waker));
    ring_waker_sleep(&waker);
    ring_waker_awake(&waker);
    assert_false(ring_waker_wake_needed(&waker));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pushes_and_pops_like_a_queue),
        cmocka_unit_test(a_wake_is_asked_for_once_and_only_when_asleep),
        cmocka_unit_test(no_op_is_lost_and_no_wake_is_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
