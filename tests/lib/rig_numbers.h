/* Messages that are numbers, published and taken in order, over a shard_rig with a store: and what of them waits, where. */
#ifndef TIDEGATE_TESTS_LIB_RIG_NUMBERS_H
#define TIDEGATE_TESTS_LIB_RIG_NUMBERS_H

#include "broker/mqtt/packet.h"
#include "common/record.h"
#include "tests/lib/shard_rig.h"

#define STORE_RIG(...) rig_new(&(struct rig_options){.has_store = true, __VA_ARGS__})

void publish_number(struct rig_client *client, const char *topic, unsigned number, uint8_t qos, uint16_t packet_id);
/* Publish numbers first..last with QoS 1, and take the answers. */
void publish_range(struct rig *rig, struct rig_client *pub, const char *topic, unsigned first, unsigned last);
/* The number that a PUBLISH is. */
unsigned number_of(const struct packet *packet);
/* Take and acknowledge QoS 1 messages until none comes; each must be the next number. Returns the last. */
unsigned take_all(struct rig *rig, struct rig_client *sub, unsigned next);
/* A session that stays, with a subscription; its client has gone. */
struct rig_client *away_subscriber(struct rig *rig, const char *id, const char *filter, uint8_t qos);

/* The number of the session that the newest PUBLISH record names first. */
uint64_t named_session(const struct rig *rig);
/* Messages named by the positions of such records. */
size_t count_named(const struct rig *rig, enum record_type type);
/* Messages that wait in the queues of shard 0, and those of them that are in memory. */
uint64_t queued(struct rig *rig);
uint64_t in_memory(struct rig *rig);

#endif
