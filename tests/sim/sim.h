/* The simulator: whole broker and sink in one thread, from one seed.
 *
 * The pure core runs as it is in production: shards, route actor, log writer, log reader, partitions. What is simulated is what
 * surrounds it: the rings (bounded, delivered in any order that FIFO per ring allows), the network (any number of bytes at a time, cut at
 * any byte), the disk (tests/lib/sim_fs.h: forgets what was not synced, tears what was under way, fails, fills up), the clocks, and clients
 * that behave and misbehave. Each step draws one thing that could happen next. The same seed draws the same run.
 *
 * Clients publish telemetry and commands (which are not logged), some retained, some larger than a block, some with an expiry; they have
 * wills, lose connections, or leave the old one open and come back over it; strangers send garbage. Rings are small and one of them may
 * stand still for long; the log is small and the sink may be away until it is full.
 *
 * The broker has many lives. What a life leaves is its log (sim_fs) and its database (tests/lib/sim_kv.h), which end with the process or
 * with the power, with commits that fail for space or for good; the next one begins with broker/ops/recovery.h, with another number of
 * shards and another hash key. The store's writer and reader are actors like the others, and checkpoints come every few messages.
 *
 * A ledger notes what clients were promised. Checked at every step: what a subscriber may not see twice, order per (publishing client,
 * device, QoS), a retained value that is not the newest, a session that is gone, a subscription that was given up, an old connection that
 * outlives its takeover; the books, whenever the rings are empty. Checked at the end, after all faults have ended, everything came to rest
 * and all subscribed once more: each acknowledged telemetry message is in the sink exactly once, with the value written last; nothing is
 * there that nobody sent; subscribers got what was acknowledged while they had a session, but for what the bounds of queues explain;
 * wills of clients that did not come back were said; the database holds nothing that nobody wants; the books balance.
 *
 * A finding ends the process with the seed and the step. Thread: one. */
#ifndef TIDEGATE_TESTS_SIM_SIM_H
#define TIDEGATE_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "broker/mqtt/packet.h"
#include "common/bytes.h"
#include "common/log_block.h"
#include "tests/lib/check_random.h"
#include "tests/lib/sim_fs.h"
#include "tests/lib/sim_kv.h"

#define SIM_SHARDS_MAX 3
#define SIM_CLIENTS_MAX 8
#define SIM_DEVICES_MAX 8
#define SIM_MESSAGES_MAX 8192
#define SIM_PARTITIONS_MAX 3
#define SIM_NODES (SIM_SHARDS_MAX + 4) /* shards, route, log, store, reader */
#define SIM_NOBODY UINT32_MAX
#define SIM_RINGS (SIM_NODES * SIM_NODES)
#define SIM_PADDING_MAX 24000
#define SIM_PACKET_MAX (SIM_PADDING_MAX + 512)

struct sim;
struct sim_broker;
struct sim_sink;
struct shard;

/* Bytes on their way in one direction. */
struct sim_pipe {
    uint8_t *bytes;
    size_t size, capacity;
};

/* One TCP connection. Freed when both ends have let go of it. */
struct sim_conn {
    struct sim_client *client; /* NULL: the client's end is closed, or a ghost's */
    struct sim_client *ghost_of;
    bool ghost;          /* open, and nobody reads at the client's end: an old connection of ghost_of, or one that sends garbage */
    struct client *core; /* NULL: not at its home yet, or the broker's end is closed */
    struct shard *shard; /* its home */
    bool broker_open;    /* the broker's process holds its end */
    bool broken;         /* reset: the broker learns by shard_on_closed or a failing write */
    bool paused;         /* the shard does not read */
    bool wants_writable; /* a write was cut short */
    size_t room;         /* bytes the socket takes until the client reads: small ones find partial writes */
    struct sim_pipe up, down;
    struct sim_conn *next;
};

enum sim_kind {
    SIM_TELEMETRY, /* fleet/DEVICE/telemetry: logged */
    SIM_COMMAND,   /* cmd/DEVICE: logged if somebody's session wants it */
    SIM_KINDS,
};

/* One message of the ledger. */
struct sim_message {
    uint32_t id; /* index; the value that is published */
    enum sim_kind kind;
    bool will, retain;
    bool clears;            /* a retained one without payload */
    bool is_lasting;        /* its tier was `log`, or all was durable since it was acknowledged: no crash takes it back */
    bool unordered;         /* at QoS 0 a large record may come behind what its client's next session publishes */
    bool cancelled;         /* a will, and the broker has closed behind DISCONNECT */
    bool is_cancel_lasting; /* and that is durable */
    uint64_t due_step;      /* a will that must be said though its client came back: when its CONNECT was sent; 0: none */
    bool is_due_lasting;    /* in another life of the broker, too */
    bool given;             /* somebody received it whom it may reach only when durable (LOG 9) */
    uint32_t padding;       /* bytes of blanks in the payload */
    uint32_t expiry_s;      /* 0: none */
    uint32_t acked_life;    /* incarnation of the broker that acknowledged it */
    uint8_t qos;
    uint8_t client, device;
    bool acked;        /* PUBACK, or PUBREC: the broker has taken it */
    bool own_time;     /* the payload says `ts`; otherwise the row gets the receive time */
    uint32_t attempts; /* PUBLISH packets that began a flow, resends with the same session left out */
    int64_t ts_ms;
    uint64_t first_sent_step, acked_step;
    uint32_t flow;   /* changes when the flow had to begin anew: session or broker memory was lost */
    bool is_refused; /* its end: no promise was made */
};

struct sim_flow {
    uint32_t message;
    uint16_t packet_id;
    uint32_t incarnation; /* of the broker that the PUBLISH went to last */
    bool was_kept;        /* the session that it went to outlives the broker */
    bool sent, received;  /* received: PUBREC came, PUBREL is out */
};

#define SIM_FLOWS_MAX 8
#define SIM_ASKED_MAX 16384

struct sim_client {
    struct sim *sim;
    uint8_t index;
    char id[16];
    enum mqtt_version version;
    bool clean, publishes, subscribes, has_keep_alive;
    bool is_steady;
    uint32_t will;      /* message id + 1 of this connection's will */
    uint64_t will_step; /* when it was sent */
    bool is_will_delayed;
    uint32_t will_due; /* message id + 1: of a connection that was lost without delay for its will, and no CONNACK since */
    uint64_t will_due_step;
    uint32_t will_due_life;
    uint32_t will_pending; /* message id + 1: of a connection that was lost, and no CONNECT since */
    uint32_t will_life;    /* the broker's that has it */
    uint8_t subscribe_qos;
    uint32_t expiry_s;        /* of its sessions; 0: they end with the connection, UINT32_MAX: never */
    bool wants_short;         /* that one is to end with its connection */
    bool wants_clean;         /* the next session is to be a new one; until CONNACK says so */
    bool is_persistent;       /* its present session is */
    bool is_session_promised; /* a CONNACK said so: there must be one at the next, unless it has expired */
    bool may_have_session;    /* the broker may have one: of this connection, or of a CONNECT that nobody answered */
    bool may_find_session;    /* likewise, when the CONNECT of this connection was sent */
    int64_t seen_online_mono; /* when it was last certainly connected */
    int64_t seen_online_ahead;
    uint64_t away_until; /* step */
    bool is_gone;        /* never comes back */
    struct sim_conn *conn;
    bool online;                          /* CONNACK was success */
    bool closing;                         /* said DISCONNECT */
    struct sim_pipe input;                /* bytes of incomplete packets */
    struct sim_flow flows[SIM_FLOWS_MAX]; /* in the order they were begun */
    size_t flow_count;
    uint16_t next_packet_id;
    uint32_t receive_maximum;
    uint32_t session_life;   /* of the broker that made the session the client knows of */
    uint32_t session_number; /* counts sessions: changes when CONNACK says none was there */
    struct sim_subscription {
        enum { SUB_NONE, SUB_ASKED, SUB_YES, SUB_LEAVING } state; /* ASKED, LEAVING: perhaps */
        bool is_wanted, is_pending;                               /* pending: the answer is to come on this connection */
        uint64_t since_step;                                      /* SUBACK; or UNSUBACK */
        uint64_t sent_step;                                       /* the first SUBSCRIBE since there was none */
        uint64_t oldest_step;                                     /* of the SUBSCRIBEs whose retained values may still be on their way */
    } subscriptions[SIM_KINDS];
    uint64_t lost_step;                     /* when a connection ended last */
    bool heard[SIM_DEVICES_MAX][SIM_KINDS]; /* something of that topic came in this session */
    uint8_t *owed;                          /* per message: it was acknowledged while the session was subscribed */
    uint32_t *inbound;                      /* per packet id: message + 1 that was received with QoS 2 under it and not released */
    enum { RESUMES = 1, RESUMES_PRESENT = 2, RESUMES_DOUBTFUL = 4 } resumes; /* flows are to be resumed on this connection */
    uint8_t *seen;                                                           /* per message: how often it was received anew */
    uint64_t *asked_steps;                                                   /* per subscription identifier: when its SUBSCRIBE was sent */
    uint32_t asked_count;
    uint8_t *fresh; /* per message: how often it was received without DUP */
    struct sim_newest {
        uint32_t message; /* + 1 */
        uint32_t life;    /* of the broker that sent it */
    } * order;            /* newest message first received, per [client][device][qos][kind] */
    uint64_t packets;
};

/* What readers of a retained topic agreed about while nobody wrote it. */
struct sim_retained {
    uint64_t written_step; /* the last at which somebody sent a value, or heard what became of one, or a crash may have undone one */
    uint64_t read_step;    /* written_step when `value` was read */
    uint32_t value;        /* message id + 1; 0: nothing was read */
};

struct sim_ledger {
    struct sim_message messages[SIM_MESSAGES_MAX];
    struct sim_retained retained[SIM_DEVICES_MAX][SIM_KINDS];
    uint32_t count;
    int64_t next_ts_ms[SIM_DEVICES_MAX];
    uint32_t logged_order[SIM_CLIENTS_MAX][SIM_DEVICES_MAX]; /* newest message id + 1 whose first record the sink has read */
    uint8_t *logged;                                         /* per message: its record was read */
};

#define SIM_RETAINED_MAX 1000                                        /* more than there are topics */
#define SIM_LOG_BYTES(config) (4 * (uint64_t)(config)->segment_size) /* log_max_size */

struct sim_config {
    uint16_t shard_count;
    uint32_t client_count, device_count, partition_count;
    uint32_t ring_capacity;
    uint32_t block_count, block_body, segment_size;
    uint32_t padding_max;
    uint32_t sink_rest; /* a sink that is down comes back in one of so many steps */
    uint32_t steps;
    uint32_t away_steps;     /* a subscriber that leaves may stay away so long */
    uint32_t burst;          /* messages published at a time */
    uint32_t large_one_in;   /* of so many messages one is large */
    uint32_t log_rest;       /* the log thread gets the processor one time in so many */
    uint32_t haste;          /* behind one promise in so many the broker dies soon; 0: only when it happens so */
    uint32_t change_one_in;  /* of so many things that a subscriber does one changes what it is subscribed to */
    uint32_t clean_one_in;   /* of so many connections one begins with a clean start, */
    uint32_t short_one_in;   /* of so many clean starts one is of a session that ends with its connection, */
    uint32_t will_one_in;    /* of so many connections one has a will, */
    uint32_t command_one_in; /* of so many messages one is a command, */
    uint32_t starve_one_in;  /* of so many steps one lets a ring stand still, */
    bool keeps_sessions;     /* all of them */
    bool is_v5;              /* every client */
    bool has_watchers;       /* few publish, and the others only subscribe */
    bool shares_devices;     /* everyone publishes for all */
    uint32_t quiet_step;     /* from then on nobody publishes */
    bool has_steady;         /* the last client stays subscribed, in one session, and misses nothing */
    bool starves_route;      /* always one from a shard to the route actor */
    uint32_t retain_one_in;  /* of so many messages one is retained, */
    uint32_t away_one_in;    /* of so many losses of a connection one is for longer, */
    uint32_t fault_one_in;   /* of so many steps one is a fault, */
    uint32_t cut_one_in;     /* and of so many other steps one cuts a connection; 0: none */
    bool all_go_away;        /* those, too, whose sessions end with their connection */
    uint32_t give_up_one_in; /* and before its CONNACK it is given up, once in so many looks; 0: never */
    uint32_t alignment;
    bool disk_faults, power_faults, store_faults, wall_faults;
    bool persistence, queue_qos0;
    bool is_bounded; /* queues may overflow */
    bool has_memory_tier;
    bool has_drought;     /* the sink goes at half time and comes back when the log is full and all that can go on without it has */
    bool store_asks_file; /* the store's writer reads the durable end from the state file */
    uint8_t queue_policy;
    uint32_t retained_max; /* topics that may have a value */
    uint16_t inflight_max;
    uint32_t queue_messages_max, totals_messages_max;
    uint64_t queue_bytes_max;
    int64_t queue_age_max_ns;
    uint32_t expiry_max_s, grace_ms, wills_per_s;
    int64_t checkpoint_ns, lag_ns;
    uint32_t lag_share_percent; /* of a segment: lag_bytes */
    uint64_t lag_bytes, delta_bytes;
};

struct sim {
    uint64_t seed, step;
    int purpose; /* < 0: the last digit of the seed */
    struct check_random random;
    struct sim_config config;
    int64_t mono, wall;
    int64_t wall_ahead;       /* by how much the wall clock was set forward, all together */
    int64_t wall_ahead_known; /* likewise, when the broker last committed or began: a step since then looks to the next life like time */
    int64_t calm_mono;
    bool calm;    /* no more faults and no new messages: come to rest */
    bool hurries; /* nothing happens any more: let time pass */
    bool is_dry;  /* the sink stays away */
    bool trace;
    struct sim_fs *fs;
    struct sim_kv *kv;
    uint16_t shard_count;      /* of this life of the broker */
    uint64_t drops[2];         /* of all lives, what bounds explain, and what nothing does */
    struct sim_broker *broker; /* NULL: down */
    struct sim_sink *sink;     /* NULL: down */
    uint32_t incarnation;      /* of the broker */
    struct sim_conn *conns;
    unsigned starved; /* number of the ring that is not served until starved_end; SIM_RINGS: none */
    uint64_t starved_end;
    uint64_t power_loss_step; /* behind a fault of the disk; 0: none */
    uint64_t kill_step;       /* behind a promise; 0: none */
    struct sim_client clients[SIM_CLIENTS_MAX];
    struct sim_ledger ledger;
    uint64_t progress; /* counts everything that moves, to know rest */
};

/* sim_main.c */
__attribute__((format(printf, 2, 3), noreturn)) void sim_found(struct sim *sim, const char *format, ...);
__attribute__((format(printf, 2, 3))) void sim_trace(struct sim *sim, const char *format, ...);
uint64_t sim_below(struct sim *sim, uint64_t bound);
bool sim_chance(struct sim *sim, uint32_t numerator, uint32_t denominator);
/* The broker has said something that it must keep: it may die now. is_rare: of a kind that seldom comes. */
void sim_promised(struct sim *sim, bool is_rare);

/* sim_net.c: bytes and connections. */
void sim_pipe_put(struct sim_pipe *pipe, const void *data, size_t size);
void sim_pipe_drop(struct sim_pipe *pipe, size_t size);
struct sim_conn *sim_conn_open(struct sim *sim, struct sim_client *client);
void sim_conn_reset(struct sim *sim, struct sim_conn *conn); /* cut now: bytes under way are lost */
void sim_conn_reap(struct sim *sim);
void sim_conn_abandon(struct sim_client *client); /* the client forgets it; it stays open */
void sim_conn_open_garbage(struct sim *sim);
void sim_conn_reset_ghosts(struct sim *sim, bool all); /* one of them, perhaps */
void sim_conn_check_taken_over(struct sim *sim, const struct sim_client *client);

/* sim_broker.c: one life of the broker. */
bool sim_broker_start(struct sim *sim); /* false: it could not (disk), tried again later */
void sim_broker_die(struct sim *sim, bool power);
bool sim_broker_step(struct sim *sim); /* one thing that could happen inside; false: nothing could */
bool sim_broker_is_quiet(struct sim *sim);
void sim_broker_describe(struct sim *sim); /* what it holds, for a run that is stuck */
void sim_broker_check_books(struct sim *sim);
void sim_broker_check_totals(struct sim *sim);
bool sim_broker_is_log_full(const struct sim *sim); /* publishers were told to wait; there is room for the others */
/* Its home had been told that the checkpoint lags too far behind when this was sent, and nothing else since. */
bool sim_broker_is_told_to_wait(const struct sim *sim, const struct sim_conn *conn, uint64_t sent_step);
bool sim_broker_failed(struct sim *sim);              /* log or store failed: it must be restarted */
unsigned sim_broker_ring_from_shard(struct sim *sim); /* the number of a ring from a shard to the route actor or the log */
bool sim_broker_is_drained(struct sim *sim);          /* no message waits for anybody */
bool sim_broker_has_scanned(struct sim *sim);         /* no retained value is still to be sent */
bool sim_broker_has_leftovers(const struct sim *sim); /* this life began without the space to tidy its database */
void sim_broker_check_store(struct sim *sim);         /* at rest: the database holds nothing that nobody wants */
void sim_store_fault(struct sim *sim);
void sim_broker_count_drops(const struct sim *sim, uint64_t drops[2]); /* adds those of this life */
bool sim_topic_is_memory(const struct sim *sim, enum sim_kind kind, uint8_t device);

/* sim_client.c */
void sim_client_init(struct sim *sim, uint8_t index);
void sim_client_deinit(struct sim_client *client);
void sim_client_act(struct sim *sim, struct sim_client *client);
void sim_client_read(struct sim *sim, struct sim_client *client); /* some bytes from its connection */
void sim_client_lost(struct sim *sim, struct sim_client *client); /* its connection is gone */
bool sim_client_is_done(struct sim *sim, const struct sim_client *client);
bool sim_client_is_subscribed(const struct sim_client *client);
void sim_client_subscribe_again(struct sim *sim, struct sim_client *client); /* to everything, and get all that is retained */
void sim_client_go(struct sim *sim, struct sim_client *client);              /* for good, without DISCONNECT */
void sim_clients_note_online(struct sim *sim);

/* sim_sink.c */
bool sim_sink_start(struct sim *sim);
void sim_sink_die(struct sim *sim);
bool sim_sink_step(struct sim *sim);
bool sim_sink_is_quiet(struct sim *sim);
bool sim_sink_failed(struct sim *sim);
void sim_sink_read_device(struct sim *sim, uint8_t device, void *context, void (*on_row)(void *context, int64_t ts_ns, double value));

/* sim_ledger.c */
struct sim_message *sim_ledger_new(struct sim *sim, uint8_t client, uint8_t device, uint8_t qos, enum sim_kind kind);
struct sim_message *sim_ledger_new_will(struct sim *sim, uint8_t client, uint8_t device, uint8_t qos);
size_t sim_ledger_topic(const struct sim_message *message, char *out, size_t size);
size_t sim_ledger_payload(const struct sim_message *message, char *out, size_t size);
bool sim_ledger_parse(uint32_t *id_out, struct span payload);
void sim_ledger_on_sent(struct sim *sim, struct sim_message *message);
/* Whether its acknowledgement says that it is its topic's value: who cannot be told that there is no room for one more is not told. */
bool sim_ledger_is_kept(const struct sim *sim, const struct sim_message *message);
void sim_ledger_on_acked(struct sim *sim, uint32_t id);
/* The broker knows that the connection was lost that this will is of, and will_delay is none. */
void sim_ledger_on_will_due(struct sim *sim, uint32_t id, uint64_t connect_step, bool is_lasting);
void sim_ledger_on_refused(struct sim *sim, uint32_t id);
void sim_ledger_on_all_durable(struct sim *sim); /* everything that the broker was told so far survives it */
void sim_ledger_on_broker_end(struct sim *sim);
void sim_ledger_forgive(struct sim_client *client); /* its session was replaced: it is owed nothing */
void sim_ledger_on_delivered(struct sim *sim, struct sim_client *subscriber, uint32_t id, uint8_t qos, bool dup);
/* asked_step: of the SUBSCRIBE that it answers, or of an earlier one. */
void sim_ledger_on_retained(struct sim *sim, struct sim_client *subscriber, uint32_t id, uint64_t asked_step);
void sim_ledger_on_record(struct sim *sim, uint32_t id, bool replayed);
void sim_ledger_check_wills(struct sim *sim);
void sim_ledger_check_owed(struct sim *sim);
/* retained values of the subscriptions that there are */ /* at rest, before anybody subscribes again */
void sim_ledger_check_end(struct sim *sim);
void sim_device_name(char *out, size_t size, uint8_t device);

#endif
