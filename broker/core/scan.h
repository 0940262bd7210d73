/* Scans: the retained values of a session's subscriptions, asked for at the pace that the session takes them.
 *
 * The route actor sends ROUTE_RETAINED_WINDOW values of a scan and more when it is asked for more. A scan pauses while the session's socket
 * or queue is half full, or SCAN_HELD_MAX copies of it are on their way to the disk (core/owed.h). And what may be parked has a bound for
 * all sessions of the shard: while SCAN_VALUES_MAX values are parked or may come, or SCAN_PARKED_BYTES_MAX bytes are parked, no scan of a
 * session that is logged is begun or asked for more; they wait in order (scans.waiting), with nothing in memory but what was asked for.
 *
 * Scans that an earlier start did not end (scan_restore) are made again from the beginning, as one request, when the client is back and has
 * got what waited for it.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SCAN_H
#define TIDEGATE_BROKER_CORE_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "common/bytes.h"
#include "common/err.h"

#define SCAN_HELD_MAX 256                          /* copies of one session on their way to the disk, from which its scans pause */
#define SCAN_VALUES_MAX 16384                      /* of a shard: values that are parked or may come, in windows of ROUTE_RETAINED_WINDOW */
#define SCAN_PARKED_BYTES_MAX ((uint64_t)16 << 20) /* of a shard; what may come goes beyond it */

struct pending_request;
struct route_request;
struct scans;
struct session;
struct shard;

void scans_init(struct scans *scans);
/* A SUBSCRIBE is sent. False: its scan has to wait, scan_later() follows with the reply. */
bool scan_admit(struct shard *shard, const struct session *sess, struct pending_request *pending);
/* Have the scan made, now or when there is room. The request is taken. */
void scan_later(struct shard *shard, struct session *sess, struct pending_request *pending, struct route_request *request);
/* A value of the request has come. */
void scan_on_value(struct shard *shard, struct pending_request *pending);
/* The request's scan has ended. */
void scan_on_end(struct shard *shard, struct pending_request *pending);
/* Nobody is there for a value that came: the rest of its scan is asked for all the same. */
void scan_pass_over(struct shard *shard, uint64_t request_id, const struct session_ref *session);
/* Ask for more of the values that are still to come, if the session has room for them. Cheap when none are. */
void scan_pace(struct shard *shard, struct session *sess);
/* Those that waited for room to be parked. Each turn. */
void scan_turn(struct shard *shard);
/* Whether scan_turn() would get ahead. */
bool scan_may_go_on(const struct shard *shard);
/* The session ends. */
void scan_forget(struct shard *shard, struct session *sess);
/* At start: subscriptions (records SUBSCRIPTION) of which some may be owed. Returns 0, ERR_NOMEM. */
enum err scan_restore(struct session *sess, struct span subscriptions) must_check;

#endif
