/* What a shard tells: one table of counters, gauges and queues; from it come the struct, the registration and the check of the books.
 *
 * Two equations hold, over all shards together, whenever no shard is inside a turn:
 *
 *   copies:     routed + restored == sent (QoS 0) + acknowledged + in flight + queued + held + (posted - received) + dropped{reason}
 *   telemetry:  matched == logged + refused{reason} + being logged
 *
 * A copy is one message for one session. It is routed when the topic tree (or a retained scan) names its session, restored when it comes
 * out of the checkpoint of an earlier start, and leaves the books when
 * it was sent with QoS 0, when the client finished it (PUBACK, PUBCOMP, or a PUBREC that refuses), or when it was dropped with a reason.
 * "Held" is in the ack gate or in a batch not yet posted; posted - received is inside the rings between shards.
 *
 * Cells: one writer, the shard's thread. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_STATS_H
#define TIDEGATE_BROKER_CORE_SHARD_STATS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/histogram.h"
#include "common/metrics.h"

#define SHARD_DROPPED "tidegate_dropped_copies_total", "Copies of messages for a session that were dropped."
#define SHARD_REFUSED "tidegate_refused_connects_total", "CONNECTs answered with a refusal, or closed for one."
#define SHARD_CLOSED "tidegate_closed_connections_total", "Connections that ended."
#define SHARD_RECEIVED "tidegate_received_messages_total", "PUBLISH packets taken from clients, repeated ones included."
#define SHARD_SENT "tidegate_sent_messages_total", "PUBLISH packets put into sockets, repeated ones included."
#define SHARD_PUBLISH_REFUSED "tidegate_refused_messages_total", "PUBLISH packets answered with a refusal."
#define SHARD_TELEMETRY_REFUSED "tidegate_telemetry_refused_total", "Telemetry messages that were not logged."

/* X(field, name, help, label, value); label "" = none. */
#define SHARD_DROP_MAP(X)                                                                                                                  \
    X(dropped_queue_full, SHARD_DROPPED, "reason", "queue_full")                                                                           \
    X(dropped_queue_bytes, SHARD_DROPPED, "reason", "queue_bytes")                                                                         \
    X(dropped_expired, SHARD_DROPPED, "reason", "expired")                                                                                 \
    X(dropped_too_large, SHARD_DROPPED, "reason", "too_large_for_client")                                                                  \
    X(dropped_slow_consumer, SHARD_DROPPED, "reason", "slow_consumer")                                                                     \
    X(dropped_offline, SHARD_DROPPED, "reason", "offline_qos0")                                                                            \
    X(dropped_gate_full, SHARD_DROPPED, "reason", "gate_full")                                                                             \
    X(dropped_queue_refuse, SHARD_DROPPED, "reason", "queue_refuse")                                                                       \
    X(dropped_ring_full, SHARD_DROPPED, "reason", "ring_full")                                                                             \
    X(dropped_session_gone, SHARD_DROPPED, "reason", "session_gone")                                                                       \
    X(dropped_session_ended, SHARD_DROPPED, "reason", "session_ended")                                                                     \
    X(dropped_no_memory, SHARD_DROPPED, "reason", "no_memory")                                                                             \
    X(dropped_stale_retained, SHARD_DROPPED, "reason", "newer_value_sent")                                                                 \
    X(dropped_no_local, SHARD_DROPPED, "reason", "no_local")                                                                               \
    X(dropped_total_messages, SHARD_DROPPED, "reason", "total_messages")                                                                   \
    X(dropped_total_bytes, SHARD_DROPPED, "reason", "total_bytes")                                                                         \
    X(dropped_queue_age, SHARD_DROPPED, "reason", "queue_age")                                                                             \
    X(dropped_not_wanted, SHARD_DROPPED, "reason", "not_wanted_any_more")                                                                  \
    X(dropped_corrupt, SHARD_DROPPED, "reason", "corrupt_on_disk")

#define SHARD_TELEMETRY_REFUSED_MAP(X)                                                                                                     \
    X(telemetry_refused_no_device, SHARD_TELEMETRY_REFUSED, "reason", "no_device")                                                         \
    X(telemetry_refused_skipped, SHARD_TELEMETRY_REFUSED, "reason", "no_device_skipped")                                                   \
    X(telemetry_refused_qos, SHARD_TELEMETRY_REFUSED, "reason", "qos")                                                                     \
    X(telemetry_refused_log_full, SHARD_TELEMETRY_REFUSED, "reason", "log_full_qos0")                                                      \
    X(telemetry_refused_log_failed, SHARD_TELEMETRY_REFUSED, "reason", "log_failed")                                                       \
    X(telemetry_refused_subscriber_full, SHARD_TELEMETRY_REFUSED, "reason", "subscriber_full")                                             \
    X(telemetry_refused_too_large, SHARD_TELEMETRY_REFUSED, "reason", "too_large")                                                         \
    X(telemetry_refused_no_memory, SHARD_TELEMETRY_REFUSED, "reason", "no_memory")                                                         \
    X(telemetry_refused_no_log, SHARD_TELEMETRY_REFUSED, "reason", "persistence_off")

#define SHARD_COUNTER_MAP(X)                                                                                                               \
    X(connections_opened, "tidegate_connections_opened_total", "Network connections given to a shard.", "", "")                            \
    X(connects_accepted, "tidegate_connects_accepted_total", "CONNECTs answered with success.", "", "")                                    \
    X(sessions_resumed, "tidegate_sessions_resumed_total", "CONNECTs that found their session.", "", "")                                   \
    X(sessions_ended, "tidegate_sessions_ended_total", "Sessions that ended.", "", "")                                                     \
    X(refused_malformed, SHARD_REFUSED, "reason", "malformed")                                                                             \
    X(refused_version, SHARD_REFUSED, "reason", "version")                                                                                 \
    X(refused_client_id, SHARD_REFUSED, "reason", "client_id")                                                                             \
    X(refused_not_authorized, SHARD_REFUSED, "reason", "not_authorized")                                                                   \
    X(refused_auth_method, SHARD_REFUSED, "reason", "auth_method")                                                                         \
    X(refused_keep_alive, SHARD_REFUSED, "reason", "keep_alive")                                                                           \
    X(refused_will, SHARD_REFUSED, "reason", "will")                                                                                       \
    X(refused_not_connect, SHARD_REFUSED, "reason", "first_packet_not_connect")                                                            \
    X(refused_timeout, SHARD_REFUSED, "reason", "timeout")                                                                                 \
    X(refused_full, SHARD_REFUSED, "reason", "sessions_max")                                                                               \
    X(refused_no_memory, SHARD_REFUSED, "reason", "no_memory")                                                                             \
    X(refused_gone, SHARD_REFUSED, "reason", "gone_before_connect")                                                                        \
    X(refused_log_failed, SHARD_REFUSED, "reason", "log_failed")                                                                           \
    X(refused_log_full, SHARD_REFUSED, "reason", "log_full")                                                                               \
    X(refused_shutdown, SHARD_REFUSED, "reason", "shutdown")                                                                               \
    X(closed_disconnect, SHARD_CLOSED, "reason", "disconnect")                                                                             \
    X(closed_disconnect_with_will, SHARD_CLOSED, "reason", "disconnect_with_will")                                                         \
    X(closed_network, SHARD_CLOSED, "reason", "network")                                                                                   \
    X(closed_keep_alive, SHARD_CLOSED, "reason", "keep_alive")                                                                             \
    X(closed_taken_over, SHARD_CLOSED, "reason", "taken_over")                                                                             \
    X(closed_malformed, SHARD_CLOSED, "reason", "malformed")                                                                               \
    X(closed_protocol_error, SHARD_CLOSED, "reason", "protocol_error")                                                                     \
    X(closed_refused_publish, SHARD_CLOSED, "reason", "refused_publish")                                                                   \
    X(closed_no_memory, SHARD_CLOSED, "reason", "no_memory")                                                                               \
    X(closed_shutdown, SHARD_CLOSED, "reason", "shutdown")                                                                                 \
    X(received_qos0, SHARD_RECEIVED, "qos", "0")                                                                                           \
    X(received_qos1, SHARD_RECEIVED, "qos", "1")                                                                                           \
    X(received_qos2, SHARD_RECEIVED, "qos", "2")                                                                                           \
    X(received_duplicates, "tidegate_received_duplicates_total", "QoS 2 PUBLISHes whose identifier was open: answered, not routed.", "",   \
      "")                                                                                                                                  \
    X(received_packets, "tidegate_received_packets_total", "Packets taken from clients.", "", "")                                          \
    X(received_bytes, "tidegate_received_bytes_total", "Bytes taken from sockets (after TLS).", "", "")                                    \
    X(sent_qos0, SHARD_SENT, "qos", "0")                                                                                                   \
    X(sent_qos1, SHARD_SENT, "qos", "1")                                                                                                   \
    X(sent_qos2, SHARD_SENT, "qos", "2")                                                                                                   \
    X(resent, "tidegate_resent_messages_total", "PUBLISHes sent again after a reconnect, with DUP.", "", "")                               \
    X(sent_bytes, "tidegate_sent_bytes_total", "Bytes given to sockets.", "", "")                                                          \
    X(publish_refused_quota, SHARD_PUBLISH_REFUSED, "reason", "quota")                                                                     \
    X(publish_refused_no_device, SHARD_PUBLISH_REFUSED, "reason", "no_device")                                                             \
    X(publish_refused_qos, SHARD_PUBLISH_REFUSED, "reason", "qos")                                                                         \
    X(publish_refused_retained_full, SHARD_PUBLISH_REFUSED, "reason", "retained_full")                                                     \
    X(publish_refused_too_large, SHARD_PUBLISH_REFUSED, "reason", "too_large")                                                             \
    X(publish_refused_log_failed, SHARD_PUBLISH_REFUSED, "reason", "log_failed")                                                           \
    X(publish_refused_log_full, SHARD_PUBLISH_REFUSED, "reason", "log_full_qos0")                                                          \
    X(publish_refused_subscriber_full, SHARD_PUBLISH_REFUSED, "reason", "subscriber_full")                                                 \
    X(retained_refused, "tidegate_retained_updates_total", "Retained PUBLISHes by what they did.", "result", "refused")                    \
    X(publish_unmatched, "tidegate_unmatched_messages_total", "Messages that no subscription and no rule wanted.", "", "")                 \
    X(publish_paused, "tidegate_paused_publishes_total", "Times a connection was not read because something had no room.", "", "")         \
    X(blocked_retries, "tidegate_blocked_retries_total", "Times a connection that found no room tried again.", "", "")                     \
    X(copies_routed, "tidegate_routed_copies_total", "Copies: one message for one session.", "", "")                                       \
    X(copies_restored, "tidegate_restored_copies_total", "Copies that an earlier start left in the checkpoint.", "", "")                   \
    X(copies_sent_qos0, "tidegate_sent_copies_total", "Copies sent with QoS 0.", "", "")                                                   \
    X(copies_acked, "tidegate_acked_copies_total", "Copies of QoS 1 and 2 that the client finished.", "", "")                              \
    X(copies_posted, "tidegate_posted_copies_total", "Copies given to the ring to another shard.", "", "")                                 \
    X(copies_received, "tidegate_received_copies_total", "Copies taken from the ring of another shard.", "", "")                           \
    X(telemetry_matched, "tidegate_telemetry_matched_total", "Messages that a telemetry rule claims.", "", "")                             \
    X(telemetry_logged, "tidegate_telemetry_logged_total", "Telemetry messages given to the log.", "", "")                                 \
    X(log_blocks, "tidegate_shard_log_blocks_total", "Log blocks sealed.", "", "")                                                         \
    X(log_records, "tidegate_shard_log_records_total", "Records appended.", "", "")                                                        \
    X(log_record_bytes, "tidegate_shard_log_record_bytes_total", "Bytes of records appended.", "", "")                                     \
    X(acks_released, "tidegate_released_acks_total", "Acknowledgements that left the gate.", "", "")                                       \
    X(acks_dropped, "tidegate_dropped_acks_total", "Acknowledgements whose connection had gone.", "", "")                                  \
    X(wills_published, "tidegate_published_wills_total", "Wills published.", "", "")                                                       \
    X(wills_discarded, "tidegate_discarded_wills_total", "Wills that were not to be published.", "", "")                                   \
    X(wills_failed, "tidegate_failed_wills_total", "Wills that could not be published: no memory, or refused by a rule.", "", "")          \
    X(subscribes, "tidegate_subscribed_filters_total", "Filters of SUBSCRIBE granted.", "", "")                                            \
    X(subscribes_refused, "tidegate_refused_filters_total", "Filters of SUBSCRIBE refused.", "", "")                                       \
    X(unsubscribes, "tidegate_unsubscribed_filters_total", "Filters of UNSUBSCRIBE.", "", "")                                              \
    X(retained_received, "tidegate_retained_values_total", "Retained values that came for new subscriptions.", "", "")                     \
    X(turns, "tidegate_shard_turns_total", "Turns of the shard.", "", "")                                                                  \
    SHARD_DROP_MAP(X)                                                                                                                      \
    SHARD_TELEMETRY_REFUSED_MAP(X)

/* X(field, name, help) */
#define SHARD_GAUGE_MAP(X)                                                                                                                 \
    X(connections, "tidegate_connections", "Network connections.")                                                                         \
    X(connected, "tidegate_connected_sessions", "Sessions with a connection.")                                                             \
    X(sessions, "tidegate_sessions", "Sessions, connected or not.")                                                                        \
    X(inflight, "tidegate_inflight_messages", "Outgoing QoS 1 and 2 messages that clients have not finished.")                             \
    X(partial_bytes, "tidegate_partial_packet_bytes", "Bytes of packets not yet complete or not yet handled.")                             \
    X(paused, "tidegate_paused_connections", "Connections that are not read at present.")                                                  \
    X(copies_held, "tidegate_held_copies", "Copies in the ack gate or in a batch not yet posted.")                                         \
    X(telemetry_logging, "tidegate_telemetry_logging", "Large telemetry messages on their way into log blocks.")                           \
    X(backlog, "tidegate_ring_backlog_ops", "Ops that found a full ring.")

/* X(field, queue name) */
#define SHARD_QUEUE_MAP(X)                                                                                                                 \
    X(gate, "ack_gate")                                                                                                                    \
    X(queued, "session_queue")                                                                                                             \
    X(checkpoint_window, "checkpoint_window")                                                                                              \
    X(outbox, "outbox")                                                                                                                    \
    X(wills_due, "wills_due")                                                                                                              \
    X(late_records, "late_records")                                                                                                        \
    X(parked_copies, "retained_copies")

/* Why a copy was dropped, as a number in DROP records: a new reason goes to the end of the map. */
enum shard_drop {
#define X(field, ...) SHARD_##field,
    SHARD_DROP_MAP(X)
#undef X
};

struct shard_stats {
#define X(field, ...) struct counter field;
    SHARD_COUNTER_MAP(X)
#undef X
#define X(field, ...) struct gauge field;
    SHARD_GAUGE_MAP(X)
#undef X
#define X(field, ...) struct queue_stats field;
    SHARD_QUEUE_MAP(X)
#undef X
    struct histogram gate_hold_ns; /* how long the gate held an acknowledgement */
};

/* Register all cells; stats must outlive the registry or be unregistered cell by cell. */
void shard_stats_register(const struct shard_stats *stats, struct metrics_registry *registry);

/* Do the books balance? all[0..count-1] are all shards, none inside a turn. False: both equations with their terms are in *msg. */
bool shard_stats_check(const struct shard_stats *const *all, size_t count, struct errmsg *msg);

#endif
