/* A session between its connections, and its end: expiry, will delay, and what others must be told.
 *
 *   connected --close--> away      [session_on_disconnected]  will at once, after its delay, or not at all
 *   away --CONNECT--> connected    [connect.c, attach]        will forgotten, expiry stopped
 *   away --expiry, clean start--> gone  [session_end]         a will that still waits goes out now [MQTT-3.1.2-8]
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SESSION_LIFE_H
#define TIDEGATE_BROKER_CORE_SESSION_LIFE_H

#include <stdbool.h>
#include <stdint.h>

struct session;
struct shard;

/* The connection of a session has gone. say_will: its will is to go out (after its delay). protocol: that it spoke, 3..5. */
void session_on_disconnected(struct shard *shard, struct session *sess, bool say_will, uint8_t protocol);
/* The client is back, or said goodbye: a will that waits is not said [MQTT-3.1.3-9]. */
void session_forget_will(struct shard *shard, struct session *sess);
void session_on_timer(struct shard *shard, struct session *sess);
/* End it: its will goes out now if one is waiting, its subscriptions and its queue are forgotten. It is away. */
void session_end(struct shard *shard, struct session *sess);
/* Set its timer by expiry and will. */
void session_arm_timer(struct shard *shard, struct session *sess);
/* Those that found no room. */
void session_retry_wills(struct shard *shard);
/* So many wills wait for room that no CONNECT with another is taken. Beyond it come only those of clients that are connected or away. */
#define SESSION_WILLS_DUE_MAX ((uint64_t)64 << 20) /* bytes */
bool session_wills_are_full(const struct shard *shard);

#endif
