/* What leaves the ack gate, and to whom: the dispatch of its items. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_GATE_RELEASE_H
#define TIDEGATE_BROKER_CORE_GATE_RELEASE_H

#include <stdint.h>

#include "broker/core/ack_gate.h"
#include "common/bytes.h"

/* For ack_gate_release(): the gate lets an item out. */
void gate_release_item(void *shard, const struct gate_item *item, struct span extra);

#endif
