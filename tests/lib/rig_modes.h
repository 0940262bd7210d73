/* A test in each mode of a shard_rig: with one shard, with three, and with three whose rings deliver in random portions. */
#ifndef TIDEGATE_TESTS_LIB_RIG_MODES_H
#define TIDEGATE_TESTS_LIB_RIG_MODES_H

#include "tests/lib/shard_rig.h"

struct rig_mode {
    uint16_t shard_count;
    uint64_t delay_seed;
};
extern struct rig_mode rig_modes[3];

/* For a list of struct CMUnitTest. */
#define IN_EACH_MODE(test)                                                                                                                 \
    cmocka_unit_test_prestate(test, &rig_modes[0]), cmocka_unit_test_prestate(test, &rig_modes[1]),                                        \
        cmocka_unit_test_prestate(test, &rig_modes[2])

/* In such a test: a rig in the mode that cmocka's `state` says. */
#define RIG(...) rig_new_in_mode(state, (struct rig_options){__VA_ARGS__})
struct rig *rig_new_in_mode(void **state, struct rig_options options);

#endif
