/* Listening sockets and what all connections of one listener share: limits, admission, TLS, counters.
 *
 * One `listener` of the configuration may be several sockets (IPv4 and IPv6). All are served by the door (broker/net/handover.h): one
 * thread accepts, reads CONNECT and hands over to the home. A SO_REUSEPORT socket per shard was rejected: the kernel spreads by address
 * hash, unevenly for few connections, while the home is decided by the client id anyway; a storm's work would run on the very threads that
 * serve established clients; and a loop that stops takes its queue of accepted connections with it.
 *
 * Owner: the door's thread; `connections` is changed by homes as well (atomic). Counters: the door's. */
#ifndef TIDEGATE_BROKER_NET_LISTENER_H
#define TIDEGATE_BROKER_NET_LISTENER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/guard/admission.h"
#include "broker/net/tls.h"
#include "common/err.h"
#include "common/metrics.h"

#define LISTENER_SOCKETS_MAX 8
#define LISTENER_ADDRESS_SIZE 64

struct listener_config {
    const char *address; /* host or number; NULL: all addresses; LISTENER_LOCAL: the loopback addresses only */
    uint16_t port;       /* 0: the kernel picks one, the same for all sockets of the listener where possible */
    int backlog;
    bool tcp_nodelay;
    struct tls_files tls;     /* certificate_path NULL: plain */
    uint64_t connections_max; /* UINT64_MAX: no limit */
    uint32_t packet_size_max;
    uint64_t accept_rate, accept_burst;         /* per second; 0: no limit */
    uint64_t connection_rate, connection_burst; /* CONNECTs */
};

extern const char listener_local[]; /* the address that means "loopback only" */

/* Why a connection ended at the door. */
#define LISTENER_REFUSAL_MAP(X)                                                                                                            \
    X(NOT_CONNECT, "not_connect")      /* the first packet is another */                                                                   \
    X(MALFORMED, "malformed")          /* no MQTT frame */                                                                                 \
    X(OVERSIZED, "oversized")          /* CONNECT above the limit */                                                                       \
    X(TIMEOUT, "connect_timeout")      /* */                                                                                               \
    X(CLOSED, "closed_before_connect") /* */                                                                                               \
    X(TLS_FAILED, "tls_handshake")     /* */                                                                                               \
    X(TLS_QUEUE, "tls_queue_full")     /* the CPU pool takes no more */                                                                    \
    X(RATE, "connection_rate")         /* 0x9F */                                                                                          \
    X(QUOTA, "max_connections")        /* 0x97 */                                                                                          \
    X(MEMORY, "memory")                /* also: budget of incomplete first packets */                                                      \
    X(STOPPING, "shutting_down")       /* */

enum listener_refusal {
#define X(name, text) LISTENER_REFUSED_##name,
    LISTENER_REFUSAL_MAP(X)
#undef X
        LISTENER_REFUSAL_COUNT
};
const char *listener_refusal_name(enum listener_refusal refusal);

struct listener_socket {
    int fd;
    uint16_t port;
    char address[LISTENER_ADDRESS_SIZE];
};

struct listener {
    uint16_t index; /* in the table and in shard_config.listeners */
    struct listener_config config;
    struct tls_server *tls; /* NULL: plain */
    struct listener_socket sockets[LISTENER_SOCKETS_MAX];
    size_t socket_count;
    struct admission_bucket accepts, connects;
    _Atomic int64_t connections; /* at home now */
    struct counter accepted, handed_over, accept_errors;
    struct counter refused[LISTENER_REFUSAL_COUNT];
};

/* Bind and listen; strings of config are borrowed for life. Logs "listening on address=A port=P protocol=tcp|tls" a socket.
 * Returns 0, or an error whose msg names address, port or file and the reason. Thread: main. */
enum err listener_open(struct listener *listener, uint16_t index, const struct listener_config *config, struct errmsg *msg) must_check;
/* Close the sockets (no new connections). listener_deinit also frees the TLS server: its connections are gone. */
void listener_close_sockets(struct listener *listener);
void listener_deinit(struct listener *listener);

#endif
