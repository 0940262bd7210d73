/* The way of a PUBLISH: judged, matched once, logged as one record, given to its recipients, answered.
 *
 *   judge     version and listener limits, alias, receive maximum; a QoS 2 identifier that is open is answered again and that is all
 *   admit     room for a retained value; telemetry rule; room in gate, rings, log and checkpoint, or the packet stays unprocessed (nothing
 *             has happened yet)
 *   match     the topic tree once; overlapping subscriptions of a session become one recipient (highest QoS, all identifiers)
 *   copy      one struct msg
 *   log       one record with all that is durable about it, if anything is
 *   give      recipients at once, or from the gate: persistent sessions and all recipients of QoS 2 wait for the record (LOG 9)
 *   retain    a retained one goes to the route actor under the next number; its answer waits for the route actor's (LOG 12)
 *   answer    PUBACK or PUBREC, through the gate
 *
 * A message has a record if a telemetry rule logs it, or if it is state, that is, the checkpoint has to know it: a persistent session gets
 * it and would keep it while away, it is retained, its QoS 2 identifier is to outlive this start (the publisher's session is persistent),
 * or it is a will (its session's will was logged, and the record deletes it). State also needs the checkpoint to keep up (LOG 15). For want
 * of room QoS > 0 waits unprocessed; QoS 0 is dropped as a whole when it is state, and goes on without a record when it is telemetry alone.
 * Without a log nothing has a record and nothing waits for one.
 *
 * Who waits for records (persistent sessions, QoS 2) gets messages without one from the gate, too, when anything is in it: they keep their
 * place behind what waits [MQTT-4.6.0-5].
 *
 * Wills go the same way without judge and answer. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_PUBLISH_H
#define TIDEGATE_BROKER_CORE_PUBLISH_H

#include "broker/core/client_state.h"
#include "broker/core/publish_job.h"
#include "broker/session/will.h"

enum client_step publish_on_packet(struct shard *shard, struct client *client, const struct packet_publish *packet, size_t packet_size);
/* A will. False: no room now, nothing happened. */
bool publish_will(struct shard *shard, const struct will *will);

/* The record of a large publish is complete: its last block is `wait_block`. The job is taken. */
void publish_on_logged(struct shard *shard, struct publish_job *job, uint64_t wait_block);
/* All retained PUBLISHes of this shard below `number` are logged, or on their way as the large record: say so to the store (LOG 12). */
void publish_say_passed(struct shard *shard, uint64_t number);

#endif
