/* Who gets a PUBLISH: the topic tree is matched once, and overlapping subscriptions of a session become one recipient (highest QoS, all
 * identifiers). The recipients stand in the shard's scratch, by when they get it: now, or held until the message's record is durable
 * (LOG 9). Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_FAN_OUT_H
#define TIDEGATE_BROKER_CORE_FAN_OUT_H

#include <stdbool.h>

struct msg_source;
struct shard;

/* Fills shard.scratch. is_will: nobody is there to be refused, and all wait for its record. False: memory is short. */
bool fan_out_find(struct shard *shard, const struct msg_source *source, bool is_will);

#endif
