/* SUBSCRIBE and UNSUBSCRIBE: one request each to the route actor, the answer when it has done it; then the retained values
 * (core/owed.h).
 *
 * The session's own list of filters follows the requests as they are sent, so that its end can name all that may be in the tree; while it
 * is away one filter is remembered by its place there (session_fold_filter). Shared subscriptions are refused, and CONNACK says so.
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SUBSCRIBE_H
#define TIDEGATE_BROKER_CORE_SUBSCRIBE_H

#include "broker/core/client_state.h"
#include "broker/route/route_actor.h"

enum client_step subscribe_on_subscribe(struct shard *shard, struct client *client, const struct packet_subscribe *packet);
enum client_step subscribe_on_unsubscribe(struct shard *shard, struct client *client, const struct packet_unsubscribe *packet);
void subscribe_on_reply(struct shard *shard, struct route_request *request);

#endif
