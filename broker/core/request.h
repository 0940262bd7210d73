/* What a session asks of the route actor: subscribe, unsubscribe, scan, forget me, I am full. One op each; what is answered stands in the
 * session's list of pending requests until then. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_REQUEST_H
#define TIDEGATE_BROKER_CORE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/route/route_actor.h"
#include "common/bytes.h"

struct pending_request;
struct session;
struct shard;

/* A new one into the session's list, with room for filter_count filters to be filled in by the caller. asked_count: filters of the packet.
 * NULL when memory is short. */
struct pending_request *request_begin(struct shard *shard, struct session *sess, uint32_t asked_count, uint32_t filter_count);
/* The request is taken. id: of the pending one. packet_id: what the answer is for, 0 = no packet. */
void request_send(struct shard *shard, struct session *sess, struct route_request *request, enum route_kind kind, uint64_t id,
                  uint16_t packet_id);
/* The text of one filter behind those before it; text_size: of all so far. */
void request_put_filter(struct route_request *request, uint32_t index, uint32_t *text_size, struct span text);
/* Publishers are to be refused for its sake, or no more. False: memory is short, nothing happened. */
bool request_set_full(struct shard *shard, struct session *sess, bool is_full);
/* It ends: nothing of it is to stay in the tree. */
void request_forget_session(struct shard *shard, struct session *sess);
/* One was answered: a session that is away and has nothing on its way takes less memory (session_fold_filter). */
void request_fold_if_away(struct shard *shard, struct session *sess);
/* A subscription as the tree has it, from its record. options: of RECORD_SUBSCRIPTION. */
struct subscriber request_subscriber(uint64_t number, actor_id home, uint64_t options);

#endif
