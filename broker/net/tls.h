/* TLS as a transport: mbedtls 2.28, TLS 1.2, P-256, session tickets.
 *
 * A `tls_server` is what the connections of one listener share: certificate, key, ticket keys, random generator. mbedtls guards those with
 * mutexes of its own, so handshakes of several connections run on several threads at once; one connection is used by one thread at a time.
 *
 * The curve is pinned to P-256: with mbedtls' default list a client that offers P-521 gets it, and a full handshake then costs more than
 * twice. Tickets make a returning device cheap (about 50 us instead of 3.5 ms); their keys turn by themselves and live as long as the
 * process. Renegotiation is off.
 *
 * While the handshake lasts mbedtls takes exactly the bytes of each record from the socket, because what follows the last flight may be the
 * client's first packet; afterwards up to 64 KiB are received at once into the thread's scratch memory and decrypted to the last byte. */
#ifndef TIDEGATE_BROKER_NET_TLS_H
#define TIDEGATE_BROKER_NET_TLS_H

#include "broker/net/transport.h"
#include "common/err.h"

struct tls_server;

struct tls_files {
    const char *certificate_path; /* PEM: the server's certificate, then the intermediate ones */
    const char *key_path;         /* PEM or DER, not encrypted */
};

/* Load and check what a listener needs. Returns 0, or an error whose msg names the file and the reason. Thread: main. */
enum err tls_server_new(struct tls_server **server_out, const struct tls_files *files, struct errmsg *msg) must_check;
/* NULL is fine. All its connections are gone. */
void tls_server_free(struct tls_server *server);

/* A connection that has not begun its handshake. fd: taken with success. Returns 0 or ERR_NOMEM. Thread: any. */
enum err tls_accept(struct transport *transport_out, struct tls_server *server, int fd) must_check;

/* Tickets accepted so far. Thread: any. */
uint64_t tls_server_resumed(struct tls_server *server);

#endif
