#include "broker/ops/broker_options.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/actor/ops.h"
#include "common/clock.h"
#include "common/logger.h"
#include "common/option_value.h"

#define KIB INT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)
#define TIB (GIB * 1024)

#define OFF(field) offsetof(struct broker_config, field)
#define LOFF(field) offsetof(struct broker_listener_config, field)

static const struct option_enum policy_names[] = {{"defer", BROKER_ADMISSION_DEFER}, {"reject", BROKER_ADMISSION_REJECT}, {NULL, 0}};
static const struct option_enum queue_policies[] = {
    {"drop_newest", BROKER_QUEUE_DROP_NEWEST}, {"drop_oldest", BROKER_QUEUE_DROP_OLDEST}, {"refuse", BROKER_QUEUE_REFUSE}, {NULL, 0}};
static const struct option_enum format_names[] = {{"human", BROKER_LOG_HUMAN}, {"json", BROKER_LOG_JSON}, {NULL, 0}};
static const struct option_enum level_names[] = {{"info", LOGGER_INFO},
                                                 {"debug", LOGGER_DEBUG},
                                                 {"notice", LOGGER_NOTICE},
                                                 {"warning", LOGGER_WARNING},
                                                 {"error", LOGGER_ERROR},
                                                 {"off", LOGGER_OFF},
                                                 {NULL, 0}};

static const struct option_spec specs[] = {
    /* ---- listeners ---- */
    {.name = "listener",
     .type = OPTION_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .section = "Listeners",
     .doc = "Opens a listener on PORT, on all addresses or the one given. Options of listeners that follow belong to it. Port 0 lets the "
            "kernel choose; the file `listeners` in persistence_location names the port. With no listener at all the broker listens on the "
            "loopback addresses, port 1883, and lets anybody in."},
    {.name = "port",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(port),
     .text = "1883",
     .min = 0,
     .max = 65535,
     .doc = "Port of the default listener; `listener PORT` is the better way."},
    {.name = "bind_address",
     .type = OPTION_STRING,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(bind_address),
     .doc = "Host name or address of the default listener. Unset: all addresses."},
    {.name = "max_connections",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO | OPTION_MAY_BE_UNLIMITED | OPTION_MINUS_ONE_UNLIMITED,
     .offset = LOFF(max_connections),
     .text = "unlimited",
     .min = 0,
     .max = INT64_C(100000000),
     .unit = "connections",
     .doc = "Connections of this listener at one time. One more is refused with 0x97 (MQTT 5) or return code 3.",
     .mosquitto = "mosquitto closes the connection without an answer."},
    {.name = "max_qos",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(max_qos),
     .text = "2",
     .min = 0,
     .max = 2,
     .doc = "Highest QoS for publishing; CONNACK says so to MQTT 5 clients."},
    {.name = "max_topic_alias",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(max_topic_alias),
     .text = "10",
     .min = 0,
     .max = 65535,
     .doc = "Topic aliases a client may use; each costs the memory of its topic."},
    {.name = "per_listener_settings",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(per_listener_settings),
     .text = "false",
     .doc = "true: security options count for the listener they stand behind; false: one value for all."},
    {.name = "allow_anonymous",
     .type = OPTION_BOOL,
     .scope = OPTION_SECURITY,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(allow_anonymous),
     .text = "false",
     .doc = "Let in clients that give no user name. With no listener configured the default is true, for the loopback only."},
    {.name = "certfile",
     .type = OPTION_PATH,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(certfile),
     .doc = "PEM file with the server's certificate and the intermediate ones. Together with keyfile it makes the listener a TLS listener "
            "(TLS 1.2, P-256). ECDSA certificates are strongly advised: a handshake with RSA-2048 costs half as much again."},
    {.name = "keyfile",
     .type = OPTION_PATH,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MOSQUITTO,
     .offset = LOFF(keyfile),
     .doc = "PEM file with the certificate's key, without a passphrase."},
    {.name = "set_tcp_nodelay",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(set_tcp_nodelay),
     .text = "true",
     .doc = "TCP_NODELAY on all connections. false saves packets of clients that never wait, and costs others 40 ms stalls.",
     .mosquitto = "mosquitto's default is false."},
    {.name = "backlog",
     .type = OPTION_INT,
     .offset = OFF(backlog),
     .text = "4096",
     .min = 1,
     .max = 1 << 20,
     .unit = "connections",
     .doc = "Connections that the kernel holds before they are accepted. Storms are decided here: with 128 the kernel drops most of them. "
            "net.core.somaxconn cuts it; the broker warns when it does."},

    /* ---- admission ---- */
    {.name = "connect_timeout",
     .type = OPTION_DURATION,
     .offset = OFF(connect_timeout_ns),
     .text = "30s",
     .min = 100 * NS_PER_MS,
     .max = NS_PER_HOUR,
     .section = "Admission",
     .doc = "From accepting a connection to its complete CONNECT, TLS handshake included; then it is closed."},
    {.name = "accept_rate",
     .type = OPTION_INT,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(accept_rate),
     .text = "unlimited",
     .min = 1,
     .max = 1000000,
     .unit = "connections/s",
     .doc = "Connections accepted per second by the whole broker; the others wait in the backlog."},
    {.name = "accept_burst",
     .type = OPTION_INT,
     .offset = OFF(accept_burst),
     .text = "1000",
     .min = 1,
     .max = 10000000,
     .unit = "connections",
     .doc = "How many may be accepted at once after a quiet time."},
    {.name = "connection_rate",
     .type = OPTION_INT,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(connection_rate),
     .text = "unlimited",
     .min = 1,
     .max = 1000000,
     .unit = "connections/s",
     .doc = "CONNECTs let through per second by the whole broker. What comes faster is deferred or refused, see connection_policy."},
    {.name = "connection_burst",
     .type = OPTION_INT,
     .offset = OFF(connection_burst),
     .text = "5000",
     .min = 1,
     .max = 10000000,
     .unit = "connections",
     .doc = "How many may come at once after a quiet time."},
    {.name = "connection_policy",
     .type = OPTION_ENUM,
     .offset = OFF(connection_policy),
     .text = "defer",
     .enums = policy_names,
     .doc = "defer: a CONNECT above the rate waits for its place in the schedule, at most connection_defer; reject: it is refused at once. "
            "Refused with 0x9F (MQTT 5) or return code 3."},
    {.name = "connection_defer",
     .type = OPTION_DURATION,
     .offset = OFF(connection_defer_ns),
     .text = "10s",
     .min = 0,
     .max = NS_PER_HOUR,
     .doc = "Longest wait of a deferred CONNECT; one that would wait longer is refused. Keep it below the clients' own timeout."},
    {.name = "listener_accept_rate",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = LOFF(listener_accept_rate),
     .text = "unlimited",
     .min = 1,
     .max = 1000000,
     .unit = "connections/s",
     .doc = "accept_rate of this listener alone: how many TLS handshakes per second it may ask for."},
    {.name = "listener_accept_burst",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .offset = LOFF(listener_accept_burst),
     .text = "1000",
     .min = 1,
     .max = 10000000,
     .unit = "connections",
     .doc = "accept_burst of this listener alone."},
    {.name = "listener_connection_rate",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = LOFF(listener_connection_rate),
     .text = "unlimited",
     .min = 1,
     .max = 1000000,
     .unit = "connections/s",
     .doc = "connection_rate of this listener alone."},
    {.name = "listener_connection_burst",
     .type = OPTION_INT,
     .scope = OPTION_IN_LISTENER,
     .offset = LOFF(listener_connection_burst),
     .text = "5000",
     .min = 1,
     .max = 10000000,
     .unit = "connections",
     .doc = "connection_burst of this listener alone."},
    {.name = "global_max_connections",
     .type = OPTION_INT,
     .flags = OPTION_MOSQUITTO | OPTION_MAY_BE_UNLIMITED | OPTION_MINUS_ONE_UNLIMITED,
     .offset = OFF(global_max_connections),
     .text = "unlimited",
     .min = 0,
     .max = INT64_C(100000000),
     .unit = "connections",
     .doc = "Connections of all listeners at one time; one more is refused like max_connections."},
    {.name = "connecting_limit",
     .type = OPTION_INT,
     .offset = OFF(connecting_limit),
     .text = "20000",
     .min = 1,
     .max = 10000000,
     .unit = "connections",
     .doc = "Connections accepted whose CONNECT is not through yet; at the limit accepting pauses."},
    {.name = "connecting_bytes_limit",
     .type = OPTION_SIZE,
     .offset = OFF(connecting_bytes_limit),
     .text = "64MiB",
     .min = MIB,
     .max = TIB,
     .doc = "Memory for their incomplete or deferred first packets; what does not fit is closed."},
    {.name = "tls_threads",
     .type = OPTION_INT,
     .offset = OFF(tls_threads),
     .text = "0",
     .min = 0,
     .max = 64,
     .unit = "threads",
     .doc = "Threads at low priority for TLS handshakes. 0: as many as cores."},
    {.name = "tls_queue",
     .type = OPTION_INT,
     .offset = OFF(tls_queue),
     .text = "2000",
     .min = 1,
     .max = 1000000,
     .unit = "handshakes",
     .doc = "Handshake steps that may wait for these threads; a connection that finds the queue full is closed."},

    /* ---- sessions ---- */
    {.name = "max_inflight_messages",
     .type = OPTION_INT,
     .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED,
     .offset = OFF(max_inflight_messages),
     .text = "20",
     .min = 1,
     .max = 65535,
     .unit = "messages",
     .section = "Sessions and queues",
     .doc = "Outgoing QoS 1 and 2 messages that a client may have open at one time."},
    {.name = "max_queued_messages",
     .type = OPTION_INT,
     .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED,
     .offset = OFF(max_queued_messages),
     .text = "1000",
     .min = 1,
     .max = INT64_C(4000000000),
     .unit = "messages",
     .doc = "Messages that wait in one session beyond those in flight, in memory and on disk; then queue_policy decides."},
    {.name = "max_queued_bytes",
     .type = OPTION_SIZE,
     .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED,
     .offset = OFF(max_queued_bytes),
     .text = "64MiB",
     .min = 1,
     .max = 1024 * TIB,
     .doc = "The same in bytes.",
     .mosquitto = "mosquitto's default is no limit."},
    {.name = "queue_policy",
     .type = OPTION_ENUM,
     .offset = OFF(queue_policy),
     .text = "drop_newest",
     .enums = queue_policies,
     .doc = "What happens to a message for a session whose queue is full. drop_newest: that message is dropped. drop_oldest: those that "
            "wait longest are (until what is on disk has been looked up for it, a queue may hold twice as much). refuse: its PUBLISH is "
            "refused with 0x97 (MQTT 5; connections of older versions are closed) until the queue is down to three quarters; its copies at "
            "QoS 0 are dropped. Publishers learn a moment later that it is full, and the sooner with persistence, where an "
            "acknowledgement waits for the disk: what is acknowledged until then is kept beyond the bound, up to 64 messages."},
    {.name = "max_queued_age",
     .type = OPTION_DURATION,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(max_queued_age_ns),
     .text = "unlimited",
     .min = NS_PER_S,
     .max = INT64_C(200) * 365 * NS_PER_DAY,
     .doc = "A message that waited longer in a session's queue is dropped, at the latest a tenth of that time and some seconds later."},
    {.name = "max_queued_messages_total",
     .type = OPTION_INT,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(max_queued_messages_total),
     .text = "unlimited",
     .min = 1,
     .max = INT64_C(1000000000000),
     .unit = "messages",
     .doc = "Messages that wait in all sessions together. By queue_policy, drop_newest: what comes then is dropped. drop_oldest: the "
            "session that it is for drops as much of its own oldest, or what comes if it has nothing older (while those on disk are "
            "looked up for it, there may be twice as much). refuse: publishers to persistent sessions are refused, and what they have on "
            "its way may go over it."},
    {.name = "max_queued_bytes_total",
     .type = OPTION_SIZE,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(max_queued_bytes_total),
     .text = "unlimited",
     .min = 1,
     .max = 1024 * TIB,
     .doc = "The same in bytes. With persistence they are on disk: see how much of it there is."},
    {.name = "max_packet_size",
     .type = OPTION_SIZE,
     .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED,
     .offset = OFF(max_packet_size),
     .text = "16MiB",
     .min = 20,
     .max = 268435460,
     .doc =
         "Largest packet taken from a client; a larger one closes its connection with 0x95. CONNECT: at most 1 MiB, however large this is.",
     .mosquitto = "mosquitto's default is no limit."},
    {.name = "max_keepalive",
     .type = OPTION_INT,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(max_keepalive_s),
     .text = "65535",
     .min = 0,
     .max = 65535,
     .unit = "seconds",
     .doc = "Longest keep alive; MQTT 5 clients that ask for more, or for none, are told this one, older ones are refused (return code 2). "
            "0 and 65535: "
            "any, or none."},
    {.name = "receive_maximum",
     .type = OPTION_INT,
     .offset = OFF(receive_maximum),
     .text = "1000",
     .min = 1,
     .max = 65535,
     .unit = "messages",
     .doc = "Incoming QoS 1 and 2 messages that a client may have open; told to MQTT 5 clients, applied to all."},
    {.name = "receive_maximum_strict",
     .type = OPTION_BOOL,
     .offset = OFF(receive_maximum_strict),
     .text = "true",
     .doc = "true: an MQTT 5 client that exceeds it is disconnected with 0x93; false: it is not read until it has room. Older clients, who "
            "cannot be told, are never disconnected for it."},
    {.name = "persistent_client_expiration",
     .type = OPTION_DURATION,
     .flags = OPTION_MOSQUITTO | OPTION_MOSQUITTO_UNITS,
     .offset = OFF(persistent_client_expiration_ns),
     .min = NS_PER_S,
     .max = INT64_C(200) * 365 * NS_PER_DAY,
     .doc = "Longest life of a session without a connection. Unset: as long as the client asked for."},
    {.name = "will_restart_grace",
     .type = OPTION_DURATION,
     .offset = OFF(will_restart_grace_ns),
     .text = "60s",
     .min = 0,
     .max = NS_PER_DAY,
     .doc = "After a start of the broker, how long the wills of clients that were connected when it stopped wait at least: a client that "
            "comes back meanwhile, with clean start or not, takes its will back."},
    {.name = "wills_per_second",
     .type = OPTION_INT,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(wills_per_second),
     .text = "1000",
     .min = 1,
     .max = 1000000,
     .unit = "wills",
     .doc = "How many wills that an earlier start left are published in a second, so that a restart does not publish all at once."},
    {.name = "max_sessions",
     .type = OPTION_INT,
     .offset = OFF(max_sessions),
     .text = "10000000",
     .min = 1,
     .max = INT64_C(1000000000),
     .unit = "sessions",
     .doc = "Sessions of the whole broker, connected or not; a CONNECT that would make one more is refused with 0x97 (MQTT 5) or return "
            "code 3. Each shard has its share, rounded up, and refuses for itself: client ids do not spread quite evenly."},
    {.name = "queue_qos0_messages",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(queue_qos0_messages),
     .text = "false",
     .doc = "Queue QoS 0 messages for sessions without a connection."},
    {.name = "allow_zero_length_clientid",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(allow_zero_length_clientid),
     .text = "true",
     .doc = "Clients of 3.1.1 and 5 may leave the client id to the broker."},
    {.name = "allow_duplicate_messages",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(allow_duplicate_messages),
     .text = "false",
     .doc = "true: a copy for each of a client's subscriptions that match; false: one copy. After a start of the broker comes at most "
            "one copy of each message, and none of one of which a copy was acknowledged or dropped."},
    {.name = "retain_available",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(retain_available),
     .text = "true",
     .doc = "Accept retained messages."},
    {.name = "max_retained_messages",
     .type = OPTION_INT,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(max_retained_messages),
     .text = "1000000",
     .min = 0,
     .max = INT64_C(10000000000),
     .unit = "messages",
     .doc = "Retained messages of the whole broker. A value for one topic more is refused with 0x97, and nobody gets it (MQTT 5 at QoS 1 "
            "and 2), or goes to its subscribers like a message without RETAIN (MQTT 3, QoS 0, wills): tidegate_retained_updates_total "
            "counts both. New values of topics that have one are taken."},
    {.name = "max_retained_bytes",
     .type = OPTION_SIZE,
     .flags = OPTION_MAY_BE_UNLIMITED,
     .offset = OFF(max_retained_bytes),
     .text = "1GiB",
     .min = 0,
     .max = 1024 * TIB,
     .doc = "The same in bytes; a value no larger than the one it replaces is taken. With persistence they are on disk, and memory holds "
            "their topics; without, all of it."},
    {.name = "max_subscription_bytes",
     .type = OPTION_SIZE,
     .offset = OFF(max_subscription_bytes),
     .text = "4GiB",
     .min = MIB,
     .max = 1024 * TIB,
     .doc = "Memory of the tree of subscriptions of the whole broker; past it a SUBSCRIBE is refused with 0x97 (MQTT 5) or 0x80."},
    {.name = "outbox_limit",
     .type = OPTION_SIZE,
     .offset = OFF(outbox_limit),
     .text = "1MiB",
     .min = 64 * KIB,
     .max = GIB,
     .doc = "Bytes that may wait for one slow socket; then QoS 0 is dropped for it (counted) and it is not read until they are out."},
    {.name = "outbox_total_limit",
     .type = OPTION_SIZE,
     .offset = OFF(outbox_total_limit),
     .text = "512MiB",
     .min = MIB,
     .max = TIB,
     .doc = "Bytes that may wait for all sockets together. Past it a socket that has not taken everything counts as too slow, whatever its "
            "own share: QoS 0 is dropped for it, QoS 1 and 2 wait in its queue."},
    {.name = "partial_packet_limit",
     .type = OPTION_SIZE,
     .offset = OFF(partial_packet_limit),
     .text = "256MiB",
     .min = MIB,
     .max = TIB,
     .doc = "Memory for incomplete packets of all connections together; 4 KiB of each connection do not count. The connection that needs "
            "more is closed."},
    {.name = "publishes_per_turn",
     .type = OPTION_INT,
     .offset = OFF(publishes_per_turn),
     .text = "256",
     .min = 1,
     .max = 65536,
     .unit = "messages",
     .doc = "Messages of one connection handled in one turn of its loop, so that one flood does not delay others."},

    /* ---- log ---- */
    {.name = "persistence",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(persistence),
     .text = "true",
     .section = "Data",
     .doc =
         "true: what a message causes (telemetry, places in queues of persistent sessions, a retained value, a QoS 2 identifier) and what "
         "becomes of sessions, subscriptions and wills is durable before it is acknowledged. false: nothing is written, everything is in "
         "memory and ends with the process; telemetry rules are an error.",
     .mosquitto =
         "mosquitto's default is false; its true writes sessions, queues and retained messages at intervals, after acknowledging."},
    {.name = "persistence_location",
     .type = OPTION_PATH,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(persistence_location),
     .text = "/var/lib/tidegate/broker",
     .doc = "The data directory; made when missing. One broker at a time.",
     .mosquitto = "mosquitto's default is the working directory."},
    {.name = "log_max_size",
     .type = OPTION_SIZE,
     .offset = OFF(log_max_size),
     .text = "4GiB",
     .min = 16 * MIB,
     .max = 1024 * TIB,
     .doc = "Bytes of the durable log on disk. When it is full, publishers of durable messages wait until its readers have caught "
            "up. Telemetry larger than half of it, divided by the number of shards, is refused."},
    {.name = "log_segment_size",
     .type = OPTION_SIZE,
     .offset = OFF(log_segment_size),
     .text = "64MiB",
     .min = MIB,
     .max = 4 * GIB,
     .doc = "Size of one file of the log; at least four of them must fit into log_max_size."},
    {.name = "log_commit_spacing",
     .type = OPTION_DURATION,
     .offset = OFF(log_commit_spacing_ns),
     .text = "200us",
     .min = 0,
     .max = NS_PER_S,
     .doc = "Least time between two writes while two or more connections wait for one; up to ten times that when records come thick. More "
            "saves "
            "CPU and costs latency; a lone client never waits."},
    {.name = "log_free_disk_floor",
     .type = OPTION_SIZE,
     .offset = OFF(log_free_disk_floor),
     .text = "256MiB",
     .min = 0,
     .max = 1024 * TIB,
     .doc = "With fewer free bytes on the disk than this the log takes no more of it: publishers of durable messages wait when the "
            "segments that are there are full."},
    {.name = "log_blocks_per_shard",
     .type = OPTION_INT,
     .offset = OFF(log_blocks_per_shard),
     .text = "64",
     .min = 4,
     .max = 4096,
     .unit = "blocks",
     .doc = "Blocks of 64 KiB that one shard may have under way to the disk; bounds what waits for a slow disk."},
    {.name = "checkpoint_interval",
     .type = OPTION_DURATION,
     .offset = OFF(checkpoint_interval_ns),
     .text = "1s",
     .min = 10 * NS_PER_MS,
     .max = NS_PER_MINUTE,
     .doc = "How often the checkpoint (sessions, queues, retained values, in the directory `checkpoint`) is brought up to the log. No "
            "acknowledgement waits for it. Longer: fewer and larger commits, more to replay at a start, and messages for absent "
            "subscribers stay in memory for longer."},
    {.name = "checkpoint_lag_time",
     .type = OPTION_DURATION,
     .offset = OFF(checkpoint_lag_ns),
     .text = "10s",
     .min = NS_PER_S,
     .max = NS_PER_HOUR,
     .doc = "When the checkpoint is further than this behind the log, publishers of what has to go into it wait; it bounds the replay at a "
            "start. Telemetry that no absent subscriber wants goes on."},
    {.name = "checkpoint_lag_size",
     .type = OPTION_SIZE,
     .offset = OFF(checkpoint_lag_bytes),
     .text = "1GiB",
     .min = MIB,
     .max = 64 * GIB,
     .doc = "The same in bytes of log."},
    {.name = "checkpoint_window",
     .type = OPTION_SIZE,
     .offset = OFF(checkpoint_window_bytes),
     .text = "64MiB",
     .min = MIB,
     .max = 64 * GIB,
     .doc = "Memory for messages that wait for the next commit; it is made at once when this is used up. While the database finds no "
            "space, up to checkpoint_lag_size more."},
    {.name = "checkpoint_max_size",
     .type = OPTION_SIZE,
     .offset = OFF(checkpoint_max_bytes),
     .text = "1TiB",
     .min = 64 * MIB,
     .max = 64 * TIB,
     .doc =
         "Most that the checkpoint's database may become. That much address space is reserved, the file grows as it is used and does not "
         "shrink; freed pages are used again. When it is full, publishers of what has to go into it wait; a greater value takes a "
         "start. What is in the log then may take it over that."},
    {.name = "checkpoint_compact",
     .type = OPTION_INT,
     .offset = OFF(checkpoint_compact_percent),
     .text = "75",
     .min = 0,
     .max = 100,
     .unit = "percent",
     .doc =
         "At a start: when at least so much of the database's file is free pages (and 16 MiB are), it is written anew without them, which "
         "takes as long as writing what is in use. 0: never. While the broker runs the file does not shrink; free pages are used again."},
    {.name = "retained_cache",
     .type = OPTION_SIZE,
     .offset = OFF(retained_cache_bytes),
     .text = "16MiB",
     .min = 0,
     .max = TIB,
     .doc = "Memory for retained messages read back from the checkpoint, so that equal subscriptions of many clients read them once."},
    {.name = "log_cursor",
     .type = OPTION_STRINGS,
     .offset = OFF(log_cursors),
     .doc = "A reader of the log for which records are kept until it has read them. With telemetry rules `sink` is always one."},
    {.name = "tier",
     .type = OPTION_STRINGS,
     .offset = OFF(tiers),
     .doc =
         "FILTER memory|log: what PUBACK and PUBREC promise for topics that match. log: the record of the message is on disk; memory: it "
         "is on its way there, and a crash within the next milliseconds loses it. Lines are asked in the order of the file; the first "
         "that matches decides, and log is the default. Messages that need no record (QoS 0 subscribers, sessions that end with their "
         "connection) are acknowledged at once either way."},

    /* ---- telemetry ---- */
    {.name = "telemetry",
     .type = OPTION_STRINGS,
     .offset = OFF(telemetry),
     .section = "Telemetry",
     .doc = "A rule: PATTERN [name=] [device=topic|client_id|user_name] [max_qos=] [on_no_device=refuse|client_id|skip]. {device} stands "
            "for one "
            "whole level. Rules and telemetry_ignore lines are asked in the order of the file; the first that matches decides."},
    {.name = "telemetry_ignore", .type = OPTION_STRINGS, .offset = OFF(telemetry), .doc = "A filter whose topics are not telemetry."},
    {.name = "telemetry_partitions",
     .type = OPTION_INT,
     .offset = OFF(telemetry_partitions),
     .text = "4",
     .min = 1,
     .max = 4096,
     .unit = "partitions",
     .doc = "Each telemetry record carries murmur2(device) modulo this number, for whoever reads the log in parallel. tidegate-sink "
            "divides by its own `partitions` and stores the same rows whether the two agree or not."},

    /* ---- operation ---- */
    {.name = "shards",
     .type = OPTION_INT,
     .offset = OFF(shards),
     .text = "0",
     .min = 0,
     .max = ACTOR_SHARDS_MAX,
     .unit = "threads",
     .section = "Operation",
     .doc = "Event loops, each at home to its share of the clients. 0: as many as cores."},
    {.name = "ring_capacity",
     .type = OPTION_INT,
     .offset = OFF(ring_capacity),
     .text = "0",
     .min = 0,
     .max = 1 << 20,
     .unit = "ops",
     .doc = "Messages between two threads that may be under way; rounded up to a power of two. 0: chosen by the number of shards."},
    {.name = "http_listener",
     .type = OPTION_STRING,
     .offset = OFF(http_listener),
     .text = "127.0.0.1:1880",
     .doc = "ADDRESS:PORT (or PORT, on 127.0.0.1) of /metrics and /healthz, or `off`. Port 0 lets the kernel choose; the file `listeners` "
            "names "
            "it. No authentication: bind it to a trusted address."},
    {.name = "log_format",
     .type = OPTION_ENUM,
     .offset = OFF(log_format),
     .text = "human",
     .enums = format_names,
     .doc = "Lines for people, or one JSON object a line."},
    {.name = "log_level",
     .type = OPTION_ENUM,
     .offset = OFF(log_level),
     .text = "info",
     .enums = level_names,
     .doc = "The least severe lines that are written."},
    {.name = "log_file", .type = OPTION_PATH, .offset = OFF(log_file), .doc = "Where log lines go. Unset: stderr. SIGHUP opens it again."},
    {.name = "log_dest",
     .type = OPTION_STRINGS,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(log_dest),
     .doc = "mosquitto's way to say it: stderr, `file PATH` or none; stdout, syslog, topic and dlt are not supported (a warning)."},
    {.name = "log_type",
     .type = OPTION_STRINGS,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(log_type),
     .doc = "mosquitto's way to say it: error, warning, notice, information, debug, all, none; the least severe one counts as log_level."},
    {.name = "connection_messages",
     .type = OPTION_BOOL,
     .flags = OPTION_MOSQUITTO,
     .offset = OFF(connection_messages),
     .text = "true",
     .doc = "A log line for each connection that is refused before it reaches a session."},
    {.name = "pid_file", .type = OPTION_PATH, .flags = OPTION_MOSQUITTO, .offset = OFF(pid_file), .doc = "Write the process id there."},
    {.name = "drain_timeout",
     .type = OPTION_DURATION,
     .offset = OFF(drain_timeout_ns),
     .text = "10s",
     .min = 0,
     .max = NS_PER_HOUR,
     .doc = "On SIGTERM: how long clients may take to go (MQTT 5 clients are told 0x8B) before they are cut off."},
    {.name = "include_dir", .type = OPTION_INCLUDE_DIR, .flags = OPTION_MOSQUITTO, .doc = "Read all *.conf of a directory here, by name."},
};

static const struct option_foreign foreign[] = {
    {"password_file", false,
     "authentication is not part of this version; without it a configuration that relies on passwords must not start"},
    {"acl_file", false, "access lists are not part of this version; without them a configuration that relies on one must not start"},
    {"psk_file", false, "pre-shared keys are not part of this version"},
    {"psk_hint", false, "pre-shared keys are not part of this version"},
    {"use_identity_as_username", false, "client certificates are not part of this version"},
    {"use_subject_as_username", false, "client certificates are not part of this version"},
    {"require_certificate", false, "client certificates are not part of this version; the listener would let in clients without one"},
    {"cafile", false,
     "it names who signs client certificates, which are not part of this version; the server's own chain belongs into certfile"},
    {"capath", false,
     "it names who signs client certificates, which are not part of this version; the server's own chain belongs into certfile"},
    {"crlfile", false, "client certificates are not part of this version"},
    {"auth_plugin", false, "plugins are not supported"},
    {"plugin", false, "plugins are not supported"},
    {"protocol", false, "listeners speak MQTT over TCP or TLS; WebSocket is not part of this version"},
    {"http_dir", false, "WebSocket listeners are not part of this version"},
    {"mount_point", false, "topics are not rewritten per listener"},
    {"clientid_prefixes", false, "access by client id prefix is not part of this version"},
    {"upgrade_outgoing_qos", false, "it breaks [MQTT-3.8.4-8]: a message is delivered with at most the QoS it was published with"},
    {"message_size_limit", false, "set max_packet_size, which counts the whole packet"},
    {"connection", false, "bridges are not part of this version"},
    {"address", false, "bridges are not part of this version"},
    {"addresses", false, "bridges are not part of this version"},
    {"topic", false, "bridges are not part of this version"},
    {"socket_domain", false, "bind_address decides the address family"},
    {"bind_interface", false, "bind to an address of the interface instead"},
    {"tls_version", true, "TLS 1.2 is what it speaks"},
    {"ciphers", true, "the library's own list is used"},
    {"dhparamfile", true, "key exchange is ECDHE on P-256"},
    {"tls_engine", false, "engines are not supported"},
    {"tls_keyform", false, "engines are not supported"},
    {"user", true, "start it as the user it shall run as"},
    {"sys_interval", true, "figures are at /metrics"},
    {"autosave_interval", true, "everything is on disk before it is acknowledged; there is nothing to save at intervals"},
    {"autosave_on_changes", true, "everything is on disk before it is acknowledged; there is nothing to save at intervals"},
    {"persistence_file", true, "the data directory holds several files"},
    {"log_timestamp", true, "log lines always have a time"},
    {"log_timestamp_format", true, "log lines have RFC 3339 times"},
    {"log_facility", true, "syslog is not used"},
    {"websockets_log_level", true, "there are no WebSocket listeners"},
    {"websockets_headers_size", true, "there are no WebSocket listeners"},
    {"memory_limit", true,
     "each queue has a bound of its own; see max_queued_bytes, outbox_limit, partial_packet_limit, max_retained_bytes"},
    {"max_inflight_bytes", true, "max_inflight_messages bounds what is in flight"},
    {"retain_expiry_interval", true, "retained messages expire by their own Message Expiry Interval"},
    {"check_retain_source", true, "there are no access lists"},
    {"allow_duplicate_messages_v3", true, "allow_duplicate_messages holds for all versions"},
};

/* ---- across options ---- */

static void validate_listeners(struct options *options, struct broker_config *config)
{
    struct broker_listener_config *listeners = config->listeners.items;
    bool any_anonymous = false;
    for (size_t i = 0; i < config->listeners.count; i++) {
        struct broker_listener_config *listener = &listeners[i];
        int index = (int)i;
        listener->is_local = config->listeners.count == 1 && options_origin(options, "port", index).source == OPTION_FROM_DEFAULT &&
                             options_origin(options, "bind_address", index).source == OPTION_FROM_DEFAULT;
        if (listener->is_local && options_origin(options, "allow_anonymous", index).source == OPTION_FROM_DEFAULT)
            listener->allow_anonymous = true;
        any_anonymous = any_anonymous || listener->allow_anonymous;
        if (listener->certfile && !listener->keyfile)
            options_problem(options, OPTION_ERROR, "certfile", index, "needs a keyfile beside it");
        if (listener->keyfile && !listener->certfile)
            options_problem(options, OPTION_ERROR, "keyfile", index, "needs a certfile beside it");
    }
    if (!any_anonymous)
        options_problem(options, OPTION_WARNING, "allow_anonymous", config->listeners.count ? 0 : -1,
                        "is false and this version knows no other way in: every client will be refused (set allow_anonymous true)");
}

static void validate_log(struct options *options, struct broker_config *config)
{
    if (config->log_segment_size * 4 > config->log_max_size)
        options_problem(options, OPTION_ERROR, "log_max_size", -1, "must hold at least four segments of log_segment_size");
    if (!config->persistence && config->telemetry.count > 0)
        options_problem(options, OPTION_ERROR, "persistence", -1, "is false, but telemetry rules write to the log (set persistence true)");
    if (!config->persistence_location || config->persistence_location[0] == '\0')
        options_problem(options, OPTION_ERROR, "persistence_location", -1, "must name a directory");
    for (size_t i = 0; i < config->log_cursors.count; i++) {
        const char *name = config->log_cursors.items[i].value;
        if (strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != strlen(name) || strlen(name) > 60)
            options_problem_item(options, OPTION_ERROR, &config->log_cursors.items[i],
                                 "\"%s\" is no possible name (expected letters, digits, - and _, at most 60)", name);
    }
}

static void validate_tiers(struct options *options, struct broker_config *config)
{
    struct tier_table table = {0};
    for (size_t i = 0; i < config->tiers.count; i++) {
        const struct option_item *item = &config->tiers.items[i];
        struct errmsg msg = {{0}};
        if (tier_table_add(&table, item->value, item->line, &msg) != ERR_OK)
            options_problem_item(options, OPTION_ERROR, item, "%s", msg.text);
        else if (!config->persistence)
            options_problem_item(options, OPTION_WARNING, item, "does nothing with persistence false: nothing is saved");
    }
    tier_table_deinit(&table);
}

static void validate_telemetry(struct options *options, struct broker_config *config)
{
    struct rule_table table = {.partition_count = (uint32_t)config->telemetry_partitions};
    for (size_t i = 0; i < config->telemetry.count; i++) {
        const struct option_item *item = &config->telemetry.items[i];
        struct errmsg msg = {{0}};
        if (rule_table_add(&table, item->value, strcmp(item->key, "telemetry_ignore") == 0, item->line, &msg) != ERR_OK)
            options_problem_item(options, OPTION_ERROR, item, "%s", msg.text);
    }
    rule_table_deinit(&table);
}

/* "ADDRESS:PORT", "[V6]:PORT", "PORT", "off" */
static void validate_http(struct options *options, struct broker_config *config)
{
    const char *text = config->http_listener;
    config->http_enabled = strcmp(text, "off") != 0;
    if (!config->http_enabled)
        return;
    const char *colon = strrchr(text, ':');
    const char *port_text = colon ? colon + 1 : text;
    size_t address_size = colon ? (size_t)(colon - text) : 0;
    const char *address = text;
    if (address_size >= 2 && address[0] == '[' && address[address_size - 1] == ']') {
        address++;
        address_size -= 2;
    }
    if (!colon) {
        address = "127.0.0.1";
        address_size = strlen(address);
    }
    int64_t port;
    if (address_size == 0 || address_size >= sizeof config->http_address || !option_parse_int(&port, span_of_string(port_text)) ||
        port < 0 || port > 65535) {
        options_problem(options, OPTION_ERROR, "http_listener", -1, "\"%.80s\" cannot be used (expected ADDRESS:PORT, PORT or off)", text);
        return;
    }
    memcpy(config->http_address, address, address_size);
    config->http_address[address_size] = '\0';
    config->http_port = (uint16_t)port;
}

static void validate_log_lines(struct options *options, struct broker_config *config)
{
    for (size_t i = 0; i < config->log_dest.count; i++) {
        const struct option_item *item = &config->log_dest.items[i];
        if (strncmp(item->value, "file ", 5) == 0)
            config->log_file = item->value + 5 + strspn(item->value + 5, " \t");
        else if (strcmp(item->value, "none") == 0)
            config->log_level = LOGGER_OFF;
        else if (strcmp(item->value, "stderr") != 0)
            options_problem_item(options, OPTION_WARNING, item, "\"%.40s\" is not supported (lines go to stderr, or to log_file)",
                                 item->value);
    }
    static const struct option_enum types[] = {{"error", LOGGER_ERROR},
                                               {"warning", LOGGER_WARNING},
                                               {"notice", LOGGER_NOTICE},
                                               {"information", LOGGER_INFO},
                                               {"debug", LOGGER_DEBUG},
                                               {"all", LOGGER_DEBUG},
                                               {"subscribe", LOGGER_INFO},
                                               {"unsubscribe", LOGGER_INFO},
                                               {"websockets", LOGGER_INFO},
                                               {"none", LOGGER_OFF},
                                               {NULL, 0}};
    int level = config->log_type.count > 0 ? LOGGER_OFF : config->log_level;
    for (size_t i = 0; i < config->log_type.count; i++) {
        const struct option_item *item = &config->log_type.items[i];
        const struct option_enum *type = types;
        while (type->name && strcmp(type->name, item->value) != 0)
            type++;
        if (!type->name)
            options_problem_item(options, OPTION_WARNING, item, "\"%.40s\" is not a kind of line", item->value);
        else if (type->value < level)
            level = type->value;
    }
    config->log_level = level;
}

static void validate(struct options *options, void *arg)
{
    struct broker_config *config = arg;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t shards = config->shards > 0 ? config->shards : cores > 0 ? cores : 1;
    config->shard_count = (uint16_t)(shards < ACTOR_SHARDS_MAX ? shards : ACTOR_SHARDS_MAX);
    if (config->tls_threads == 0)
        config->tls_threads = cores < 1 ? 1 : cores < 64 ? cores : 64;
    validate_listeners(options, config);
    validate_log(options, config);
    validate_tiers(options, config);
    validate_telemetry(options, config);
    validate_http(options, config);
    validate_log_lines(options, config);
}

const struct option_table broker_option_table = {
    .program = "tidegate-broker",
    .specs = specs,
    .spec_count = sizeof specs / sizeof specs[0],
    .foreign = foreign,
    .foreign_count = sizeof foreign / sizeof foreign[0],
    .config_size = sizeof(struct broker_config),
    .listener_size = sizeof(struct broker_listener_config),
    .listeners_offset = offsetof(struct broker_config, listeners),
    .listener_port_name = "port",
    .listener_address_name = "bind_address",
    .per_listener_name = "per_listener_settings",
    .validate = validate,
};

enum err broker_options_rules(struct rule_table *table_out, const struct broker_config *config, struct errmsg *msg)
{
    *table_out = (struct rule_table){.partition_count = (uint32_t)config->telemetry_partitions};
    for (size_t i = 0; i < config->telemetry.count; i++) {
        const struct option_item *item = &config->telemetry.items[i];
        struct errmsg why = {{0}};
        enum err err = rule_table_add(table_out, item->value, strcmp(item->key, "telemetry_ignore") == 0, item->line, &why);
        if (err != ERR_OK) {
            rule_table_deinit(table_out);
            return err_set(msg, err, "%s:%d: %s: %s", item->file, item->line, item->key, why.text);
        }
    }
    return ERR_OK;
}

enum err broker_options_tiers(struct tier_table *table_out, const struct broker_config *config, struct errmsg *msg)
{
    *table_out = (struct tier_table){0};
    for (size_t i = 0; i < config->tiers.count; i++) {
        const struct option_item *item = &config->tiers.items[i];
        struct errmsg why = {{0}};
        enum err err = tier_table_add(table_out, item->value, item->line, &why);
        if (err != ERR_OK) {
            tier_table_deinit(table_out);
            return err_set(msg, err, "%s:%d: %s: %s", item->file, item->line, item->key, why.text);
        }
    }
    return ERR_OK;
}
