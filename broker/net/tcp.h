/* Plain TCP as a transport: one recv() and one writev() a call, nothing kept. */
#ifndef TIDEGATE_BROKER_NET_TCP_H
#define TIDEGATE_BROKER_NET_TCP_H

#include "broker/net/transport.h"

extern const struct transport_ops tcp_ops;

/* fd: taken, non-blocking. */
static inline struct transport tcp_transport(int fd) { return (struct transport){.ops = &tcp_ops, .impl = NULL, .fd = fd}; }

/* recv() and sendmsg() with the transport's result codes; for the other transports as well. Never raises SIGPIPE. */
ssize_t tcp_receive(int fd, void *out, size_t size);
ssize_t tcp_send(int fd, const struct iovec *iov, int iov_count);

#endif
