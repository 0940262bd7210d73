#include "tests/lib/rig_modes.h"

struct rig_mode rig_modes[3] = {{1, 0}, {3, 0}, {3, 99}};

struct rig *rig_new_in_mode(void **state, struct rig_options options)
{
    const struct rig_mode *mode = *state;
    options.shard_count = mode->shard_count;
    options.delay_seed = mode->delay_seed;
    return rig_new(&options);
}
