/* CONNECT: judged, its session found or made, an older connection taken over, CONNACK when what it did to the session is durable.
 *
 *   CONNECTING -> CONNECTED  connect_on_packet    CONNACK 0
 *   CONNECTING -> WAITING    connect_on_packet    its session is one that the log knows
 *   WAITING    -> CONNECTED  connect_on_durable   CONNACK 0, then what the session has for it, then the packets behind CONNECT
 *   CONNECTING -> gone       connect_refuse       CONNACK with the reason where the version has one
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_CONNECT_H
#define TIDEGATE_BROKER_CORE_CONNECT_H

#include "broker/core/client_state.h"
#include "common/bytes.h"

enum client_step connect_on_packet(struct shard *shard, struct client *client, const struct packet_connect *connect);
/* What its CONNECT did to the session is durable. connack: the packet. */
void connect_on_durable(struct shard *shard, struct client *client, struct span connack);
enum client_step connect_refuse(struct shard *shard, struct client *client, enum mqtt_version version, enum mqtt_reason reason,
                                struct counter *cell);
/* A session expiry interval that was asked for, within what the configuration allows. */
uint32_t connect_expiry_in_force(const struct shard *shard, uint32_t asked_s);

#endif
