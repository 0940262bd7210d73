/* The timing wheel beside a plain array of deadlines: never early, at most a tick late, nothing lost, next_ms never past the next one. */
#include "broker/session/timer_wheel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define TIMERS 300

struct model {
    struct timer_wheel wheel;
    struct timer_node nodes[TIMERS];
    uint64_t deadlines[TIMERS]; /* UINT64_MAX = not set */
    uint64_t now_ms;
    struct check_random random;
    size_t fired;
};

static uint64_t some_delay(struct check_random *random)
{
    /* All scales from nothing to years. */
    unsigned bits = (unsigned)check_random_below(random, 40);
    return check_random_next(random) & ((UINT64_C(1) << bits) - 1);
}

static void on_fire(struct timer_node *node, void *arg)
{
    struct model *model = arg;
    size_t index = (size_t)(node - model->nodes);
    assert_true(index < TIMERS);
    assert_false(timer_node_is_set(node));
    assert_int_equal(node->deadline_ms, model->deadlines[index]);
    assert_true(model->deadlines[index] <= model->now_ms);
    model->deadlines[index] = UINT64_MAX;
    model->fired++;
    if (check_random_chance(&model->random, 1, 2)) { /* itself again, and another one away */
        model->deadlines[index] = model->now_ms + 1 + some_delay(&model->random);
        timer_wheel_add(&model->wheel, node, model->deadlines[index]);
        size_t other = (size_t)check_random_below(&model->random, TIMERS);
        timer_wheel_remove(&model->wheel, &model->nodes[other]);
        model->deadlines[other] = UINT64_MAX;
    }
}

static size_t check_model(struct model *model, bool complete)
{
    size_t set = 0;
    uint64_t earliest = UINT64_MAX;
    for (size_t i = 0; i < TIMERS; i++) {
        assert_int_equal(timer_node_is_set(&model->nodes[i]), model->deadlines[i] != UINT64_MAX);
        if (model->deadlines[i] == UINT64_MAX)
            continue;
        set++;
        if (model->deadlines[i] < earliest)
            earliest = model->deadlines[i];
        if (complete) /* nothing is later than a tick */
            assert_true(model->deadlines[i] + TIMER_WHEEL_TICK_MS > model->now_ms);
    }
    assert_int_equal(timer_wheel_count(&model->wheel), set);
    uint64_t next_ms = timer_wheel_next_ms(&model->wheel);
    if (set == 0)
        assert_int_equal(next_ms, TIMER_WHEEL_NEVER);
    else
        assert_true(next_ms < earliest + TIMER_WHEEL_TICK_MS);
    return set;
}

static void run_model(uint64_t seed, uint64_t start_ms)
{
    static struct model model;
    model = (struct model){.now_ms = start_ms};
    check_random_init(&model.random, check_random_seed(seed));
    timer_wheel_init(&model.wheel, start_ms);
    for (size_t i = 0; i < TIMERS; i++)
        model.deadlines[i] = UINT64_MAX;
    for (int step = 0; step < 20000; step++) {
        size_t index = (size_t)check_random_below(&model.random, TIMERS);
        switch (check_random_below(&model.random, 4)) {
        case 0:
        case 1:
            model.deadlines[index] = model.now_ms + some_delay(&model.random);
            timer_wheel_add(&model.wheel, &model.nodes[index], model.deadlines[index]);
            break;
        case 2:
            model.deadlines[index] = UINT64_MAX;
            timer_wheel_remove(&model.wheel, &model.nodes[index]);
            break;
        default: {
            uint64_t next_ms = timer_wheel_next_ms(&model.wheel);
            if (check_random_chance(&model.random, 1, 2) && next_ms != TIMER_WHEEL_NEVER && next_ms > model.now_ms)
                model.now_ms = next_ms; /* as a loop sleeps */
            else
                model.now_ms += some_delay(&model.random) >> check_random_below(&model.random, 24);
            size_t budget = 1 + (size_t)check_random_below(&model.random, 50);
            bool more;
            do {
                size_t fired = model.fired;
                more = timer_wheel_advance(&model.wheel, model.now_ms, budget, on_fire, &model);
                assert_true(model.fired - fired <= budget);
                check_model(&model, !more);
            } while (more);
        }
        }
    }
    assert_true(model.fired > 1000);
    /* Sleeping from event to event empties the wheel. */
    for (size_t i = 0; i < TIMERS; i += 2) {
        timer_wheel_remove(&model.wheel, &model.nodes[i]);
        model.deadlines[i] = UINT64_MAX;
    }
    for (int step = 0; timer_wheel_count(&model.wheel) > 0; step++) {
        assert_true(step < 200000);
        uint64_t next_ms = timer_wheel_next_ms(&model.wheel);
        if (next_ms > model.now_ms)
            model.now_ms = next_ms;
        timer_wheel_advance(&model.wheel, model.now_ms, 1000, on_fire, &model);
        if (step > 1000) /* on_fire adds again at random: from here on drain for good */
            for (size_t i = 0; i < TIMERS; i++)
                if (step % TIMERS == (int)i) {
                    timer_wheel_remove(&model.wheel, &model.nodes[i]);
                    model.deadlines[i] = UINT64_MAX;
                }
    }
}

static void fires_what_a_plain_array_would_fire(void **state)
{
    (void)state;
    run_model(1, 0);
    run_model(2, 123456789);
    run_model(3, UINT64_C(1) << 41);
}

struct once {
    uint64_t now_ms, fired_ms;
};

static void note_time(struct timer_node *node, void *arg)
{
    (void)node;
    struct once *once = arg;
    once->fired_ms = once->now_ms;
}

static void a_lone_timer_fires_within_a_tick_of_its_deadline(void **state)
{
    (void)state;
    const uint64_t delays[] = {
        0, 1, 99, 100, 101, 6399, 6400, 6401, 409599, 409600, 409700, UINT64_C(4294967295) * 1000, UINT64_C(1) << 45};
    for (size_t i = 0; i < sizeof delays / sizeof delays[0]; i++) {
        for (uint64_t start = 0; start < 26214400; start = start * 3 + 6399) {
            struct timer_wheel wheel;
            struct timer_node node = {0};
            timer_wheel_init(&wheel, start);
            timer_wheel_add(&wheel, &node, start + delays[i]);
            struct once once = {.now_ms = start};
            for (int wakes = 0; timer_node_is_set(&node); wakes++) {
                assert_true(wakes < 1000);
                if (timer_wheel_next_ms(&wheel) > once.now_ms)
                    once.now_ms = timer_wheel_next_ms(&wheel);
                timer_wheel_advance(&wheel, once.now_ms, 10, note_time, &once);
            }
            assert_true(once.fired_ms >= start + delays[i]);
            assert_true(once.fired_ms < start + delays[i] + TIMER_WHEEL_TICK_MS);
            assert_int_equal(timer_wheel_next_ms(&wheel), TIMER_WHEEL_NEVER);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lone_timer_fires_within_a_tick_of_its_deadline),
        cmocka_unit_test(fires_what_a_plain_array_would_fire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
