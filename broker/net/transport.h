/* The bytes of one connection, plain or encrypted, behind six functions.
 *
 * A transport is a value: descriptor, operations, and the encryption's state if there is any. It is not tied to a loop, so it moves with a
 * connection from the thread that accepted it to its home by being copied. The descriptor is non-blocking. Nothing here waits.
 *
 * Invariants: after read() has returned less than `size`, no decrypted byte stays behind (what is kept is at most an incomplete record), so
 * a poll for readability never misses data. write() may keep encrypted bytes that the socket did not take (pending()); they go out first.
 *
 * Owner: one thread at a time. Bounds: plain keeps nothing; TLS keeps at most one record of output beyond what mbedtls holds. */
#ifndef TIDEGATE_BROKER_NET_TRANSPORT_H
#define TIDEGATE_BROKER_NET_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/err.h"

#define TRANSPORT_CIPHER_SIZE 65536
#define TRANSPORT_RECORD_SIZE 16384

/* Working memory of the calling thread, so that connections need none of their own. */
struct transport_scratch {
    uint8_t cipher[TRANSPORT_CIPHER_SIZE]; /* encrypted bytes just received */
    uint8_t record[TRANSPORT_RECORD_SIZE]; /* small pieces gathered into one record */
};

/* Results of read and write below zero. */
enum transport_result {
    TRANSPORT_AGAIN = -1,  /* nothing now: wait until the socket is ready */
    TRANSPORT_EOF = -2,    /* the peer ended its direction in order */
    TRANSPORT_BROKEN = -3, /* reset, timed out, or not valid TLS */
};

enum transport_step { TRANSPORT_DONE, TRANSPORT_WANT_READ, TRANSPORT_WANT_WRITE, TRANSPORT_FAILED };

struct transport;

struct transport_ops {
    const char *name; /* "tcp", "tls" */
    /* One step of the handshake; may compute for milliseconds. why: set with FAILED. */
    enum transport_step (*handshake)(struct transport *transport, struct errmsg *why);
    /* Bytes read (1..size), or a result below zero. */
    ssize_t (*read)(struct transport *transport, uint8_t *out, size_t size, struct transport_scratch *scratch);
    /* Bytes taken, 0..total (0 or short: wait for writability), or TRANSPORT_BROKEN. */
    ssize_t (*write)(struct transport *transport, const struct iovec *iov, int iov_count, struct transport_scratch *scratch);
    /* Encrypted bytes that still wait for the socket. */
    size_t (*pending)(const struct transport *transport);
    /* Try to send them: 0 when none is left, AGAIN, or BROKEN. */
    int (*flush)(struct transport *transport);
    /* No more output: tell the peer (close_notify), then end our direction. Call with nothing pending. */
    void (*shutdown)(struct transport *transport);
    /* Release everything and close the descriptor. */
    void (*free)(struct transport *transport);
};

struct transport {
    const struct transport_ops *ops;
    void *impl; /* owned: struct tls_connection, NULL for plain */
    int fd;     /* owned */
};

static inline enum transport_step transport_handshake(struct transport *transport, struct errmsg *why)
{
    return transport->ops->handshake(transport, why);
}
static inline ssize_t transport_read(struct transport *transport, uint8_t *out, size_t size, struct transport_scratch *scratch)
{
    return transport->ops->read(transport, out, size, scratch);
}
static inline ssize_t transport_write(struct transport *transport, const struct iovec *iov, int iov_count,
                                      struct transport_scratch *scratch)
{
    return transport->ops->write(transport, iov, iov_count, scratch);
}
static inline size_t transport_pending(const struct transport *transport) { return transport->ops->pending(transport); }
static inline int transport_flush(struct transport *transport) { return transport->ops->flush(transport); }
static inline void transport_shutdown(struct transport *transport) { transport->ops->shutdown(transport); }
static inline void transport_free(struct transport *transport)
{
    transport->ops->free(transport);
    transport->impl = NULL;
    transport->fd = -1;
}

#endif
