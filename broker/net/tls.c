/* The two ways a TLS connection reads.
 *
 * mbedtls pulls: header of a record, then its body, so reading from the socket directly costs two system calls a record. Once the handshake
 * is over, tls_read() receives as much as fits into the thread's scratch and lets mbedtls pull from there until it wants more; mbedtls
 * keeps an incomplete record in its own buffer. So scratch is always used up when tls_read() returns, unless the caller's buffer was too
 * small: plaintext is never longer than its ciphertext, therefore a buffer of at least the scratch's size suffices, and a smaller one
 * bounds how much is received.
 *
 * Output: the send callback never says "would block". What the socket does not take is kept in `pending`, at most one record (write() does
 * not begin another while something is pending), and goes first the next time. mbedtls itself answers each renegotiation asked for with an
 * alert; a peer that asks for ever and reads nothing would let them pile up, so past TLS_PENDING_MAX the connection counts as broken. */
#include "broker/net/tls.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_ticket.h>
#include <mbedtls/x509_crt.h>

#include "broker/net/tcp.h"
#include "common/check.h"

#define TLS_TICKET_LIFETIME_S 86400
#define TLS_PENDING_MAX ((size_t)65536) /* bytes; what we write ourselves is at most one record, a flight of the handshake a few KiB */

struct tls_server {
    mbedtls_ssl_config config;
    mbedtls_x509_crt certificate;
    mbedtls_pk_context key;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_ticket_context tickets;
    _Atomic uint64_t resumed;
};

struct tls_connection {
    mbedtls_ssl_context ssl;
    uint8_t *pending; /* encrypted, not yet sent; NULL when pending_size is 0 */
    size_t pending_at, pending_size;
    const uint8_t *input; /* rest of the scratch while tls_read() runs */
    size_t input_size;
    int fd;
    bool is_established;
    bool is_broken;
    bool has_eof; /* the peer's close_notify came behind data that was handed out first */
};

static const mbedtls_ecp_group_id tls_curves[] = {MBEDTLS_ECP_DP_SECP256R1, MBEDTLS_ECP_DP_NONE};

/* ---- the server's side that connections share ---- */

static enum err tls_explain(struct errmsg *msg, enum err err, const char *key, const char *path, int code)
{
    char text[160];
    mbedtls_strerror(code, text, sizeof text);
    return err_set(msg, err, "%s %s: %s", key, path, text);
}

/* mbedtls says "file not found" in several words; the system says it better. */
static enum err tls_check_readable(struct errmsg *msg, const char *key, const char *path)
{
    if (access(path, R_OK) == 0)
        return ERR_OK;
    int errnum = errno;
    return err_set(msg, err_from_errno(errnum), "%s %s: %s", key, path, strerror(errnum));
}

static enum err tls_server_load(struct tls_server *server, const struct tls_files *files, struct errmsg *msg)
{
    enum err err = tls_check_readable(msg, "certfile", files->certificate_path);
    if (err == ERR_OK)
        err = tls_check_readable(msg, "keyfile", files->key_path);
    if (err != ERR_OK)
        return err;
    int code = mbedtls_x509_crt_parse_file(&server->certificate, files->certificate_path);
    if (code < 0)
        return tls_explain(msg, ERR_INVALID, "certfile", files->certificate_path, code);
    if (code > 0)
        return err_set(msg, ERR_INVALID, "certfile %s: %d of its certificates cannot be read", files->certificate_path, code);
    code = mbedtls_pk_parse_keyfile(&server->key, files->key_path, NULL);
    if (code == MBEDTLS_ERR_PK_PASSWORD_REQUIRED || code == MBEDTLS_ERR_PK_PASSWORD_MISMATCH)
        return err_set(msg, ERR_INVALID, "keyfile %s: the key is encrypted; give one without a passphrase", files->key_path);
    if (code != 0)
        return tls_explain(msg, ERR_INVALID, "keyfile", files->key_path, code);
    if (mbedtls_pk_check_pair(&server->certificate.pk, &server->key) != 0)
        return err_set(msg, ERR_INVALID, "keyfile %s: is not the key of certfile %s", files->key_path, files->certificate_path);
    return ERR_OK;
}

static int tls_ticket_write(void *arg, const mbedtls_ssl_session *session, unsigned char *start, const unsigned char *end, size_t *size_out,
                            uint32_t *lifetime_out)
{
    struct tls_server *server = arg;
    return mbedtls_ssl_ticket_write(&server->tickets, session, start, end, size_out, lifetime_out);
}

static int tls_ticket_parse(void *arg, mbedtls_ssl_session *session, unsigned char *ticket, size_t size)
{
    struct tls_server *server = arg;
    int code = mbedtls_ssl_ticket_parse(&server->tickets, session, ticket, size);
    if (code == 0)
        atomic_fetch_add_explicit(&server->resumed, 1, memory_order_relaxed);
    return code;
}

static int tls_server_configure(struct tls_server *server)
{
    mbedtls_ssl_config *config = &server->config;
    int code = mbedtls_ssl_config_defaults(config, MBEDTLS_SSL_IS_SERVER, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    if (code != 0)
        return code;
    mbedtls_ssl_conf_rng(config, mbedtls_ctr_drbg_random, &server->random);
    mbedtls_ssl_conf_min_version(config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
    mbedtls_ssl_conf_max_version(config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
    mbedtls_ssl_conf_curves(config, tls_curves);
    mbedtls_ssl_conf_authmode(config, MBEDTLS_SSL_VERIFY_NONE);
    code = mbedtls_ssl_conf_own_cert(config, &server->certificate, &server->key);
    if (code != 0)
        return code;
    code = mbedtls_ssl_ticket_setup(&server->tickets, mbedtls_ctr_drbg_random, &server->random, MBEDTLS_CIPHER_AES_256_GCM,
                                    TLS_TICKET_LIFETIME_S);
    if (code != 0)
        return code;
    mbedtls_ssl_conf_session_tickets_cb(config, tls_ticket_write, tls_ticket_parse, server);
    return 0;
}

enum err tls_server_new(struct tls_server **server_out, const struct tls_files *files, struct errmsg *msg)
{
    struct tls_server *server = calloc(1, sizeof *server);
    if (!server)
        return err_set(msg, ERR_NOMEM, "TLS: %s", err_text(ERR_NOMEM));
    mbedtls_ssl_config_init(&server->config);
    mbedtls_x509_crt_init(&server->certificate);
    mbedtls_pk_init(&server->key);
    mbedtls_entropy_init(&server->entropy);
    mbedtls_ctr_drbg_init(&server->random);
    mbedtls_ssl_ticket_init(&server->tickets);

    enum err err = ERR_OK;
    int code = mbedtls_ctr_drbg_seed(&server->random, mbedtls_entropy_func, &server->entropy, (const unsigned char *)"tidegate", 8);
    if (code != 0)
        err = tls_explain(msg, ERR_IO, "TLS", "random generator", code);
    if (err == ERR_OK)
        err = tls_server_load(server, files, msg);
    if (err == ERR_OK && (code = tls_server_configure(server)) != 0)
        err = tls_explain(msg, ERR_INVALID, "TLS", "configuration", code);
    if (err != ERR_OK) {
        tls_server_free(server);
        return err;
    }
    *server_out = server;
    return ERR_OK;
}

void tls_server_free(struct tls_server *server)
{
    if (!server)
        return;
    mbedtls_ssl_ticket_free(&server->tickets);
    mbedtls_ssl_config_free(&server->config);
    mbedtls_x509_crt_free(&server->certificate);
    mbedtls_pk_free(&server->key);
    mbedtls_ctr_drbg_free(&server->random);
    mbedtls_entropy_free(&server->entropy);
    free(server);
}

/* ---- what mbedtls calls ---- */

static int tls_bio_receive(void *arg, unsigned char *out, size_t size)
{
    struct tls_connection *tls = arg;
    if (!tls->is_established) {
        ssize_t received = tcp_receive(tls->fd, out, size);
        if (received > 0)
            return (int)received;
        return received == TRANSPORT_AGAIN ? MBEDTLS_ERR_SSL_WANT_READ : received == TRANSPORT_EOF ? 0 : MBEDTLS_ERR_SSL_CONN_EOF;
    }
    if (tls->input_size == 0)
        return MBEDTLS_ERR_SSL_WANT_READ;
    size_t taken = size < tls->input_size ? size : tls->input_size;
    memcpy(out, tls->input, taken);
    tls->input += taken;
    tls->input_size -= taken;
    return (int)taken;
}

static int tls_bio_send(void *arg, const unsigned char *data, size_t size)
{
    struct tls_connection *tls = arg;
    size_t sent = 0;
    if (tls->pending_size == 0) {
        ssize_t result = tcp_send(tls->fd, &(struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = size}, 1);
        if (result < 0) {
            tls->is_broken = true;
            return MBEDTLS_ERR_SSL_CONN_EOF;
        }
        sent = (size_t)result;
    }
    if (sent == size)
        return (int)size;
    size_t kept = tls->pending_size - tls->pending_at, rest = size - sent;
    uint8_t *joined = kept + rest <= TLS_PENDING_MAX ? malloc(kept + rest) : NULL;
    if (!joined) {
        tls->is_broken = true;
        return MBEDTLS_ERR_SSL_ALLOC_FAILED;
    }
    if (kept > 0)
        memcpy(joined, tls->pending + tls->pending_at, kept);
    memcpy(joined + kept, data + sent, rest);
    free(tls->pending);
    tls->pending = joined;
    tls->pending_at = 0;
    tls->pending_size = kept + rest;
    return (int)size;
}

/* ---- the transport ---- */

static struct tls_connection *tls_of(const struct transport *transport) { return transport->impl; }

static size_t tls_pending(const struct transport *transport)
{
    const struct tls_connection *tls = tls_of(transport);
    return tls->pending_size - tls->pending_at;
}

static int tls_flush(struct transport *transport)
{
    struct tls_connection *tls = tls_of(transport);
    if (tls->is_broken)
        return TRANSPORT_BROKEN;
    if (tls->pending_size == 0)
        return 0;
    struct iovec iov = {.iov_base = tls->pending + tls->pending_at, .iov_len = tls->pending_size - tls->pending_at};
    ssize_t sent = tcp_send(tls->fd, &iov, 1);
    if (sent < 0) {
        tls->is_broken = true;
        return TRANSPORT_BROKEN;
    }
    tls->pending_at += (size_t)sent;
    if (tls->pending_at < tls->pending_size)
        return TRANSPORT_AGAIN;
    free(tls->pending);
    tls->pending = NULL;
    tls->pending_at = tls->pending_size = 0;
    return 0;
}

static enum transport_step tls_handshake(struct transport *transport, struct errmsg *why)
{
    struct tls_connection *tls = tls_of(transport);
    int flushed = tls_flush(transport);
    if (flushed == TRANSPORT_AGAIN)
        return TRANSPORT_WANT_WRITE;
    if (flushed == TRANSPORT_BROKEN) {
        (void)err_set(why, ERR_CLOSED, "the peer has gone");
        return TRANSPORT_FAILED;
    }
    while (tls->ssl.state != MBEDTLS_SSL_HANDSHAKE_OVER) {
        int code = mbedtls_ssl_handshake_step(&tls->ssl);
        if (code == 0)
            continue;
        if (code == MBEDTLS_ERR_SSL_WANT_READ)
            return tls_pending(transport) > 0 ? TRANSPORT_WANT_WRITE : TRANSPORT_WANT_READ;
        char text[128];
        if (code == MBEDTLS_ERR_SSL_CONN_EOF)
            (void)err_set(why, ERR_CLOSED, "the peer closed the connection during the handshake");
        else {
            mbedtls_strerror(code, text, sizeof text);
            (void)err_set(why, ERR_INVALID, "%s", text);
        }
        return TRANSPORT_FAILED;
    }
    if (tls_pending(transport) > 0)
        return TRANSPORT_WANT_WRITE;
    tls->is_established = true;
    return TRANSPORT_DONE;
}

/* Decrypt what `input` holds, until mbedtls wants more or `out` is full. */
static ssize_t tls_read_records(struct tls_connection *tls, uint8_t *out, size_t size)
{
    size_t filled = 0;
    while (filled < size) {
        int code = mbedtls_ssl_read(&tls->ssl, out + filled, size - filled);
        if (code > 0) {
            filled += (size_t)code;
            continue;
        }
        if (code == MBEDTLS_ERR_SSL_WANT_READ && tls->input_size == 0)
            break;
        if (code == MBEDTLS_ERR_SSL_WANT_READ || code == MBEDTLS_ERR_SSL_WANT_WRITE)
            continue;
        if (code == 0 || code == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY)
            tls->has_eof = true;
        else
            tls->is_broken = true;
        break;
    }
    /* What comes behind data is told by the next call, so make sure that the poll brings one. */
    if (filled > 0 && (tls->is_broken || tls->has_eof))
        (void)shutdown(tls->fd, SHUT_RD);
    if (filled > 0)
        return (ssize_t)filled;
    return tls->is_broken ? TRANSPORT_BROKEN : tls->has_eof ? TRANSPORT_EOF : TRANSPORT_AGAIN;
}

static ssize_t tls_read(struct transport *transport, uint8_t *out, size_t size, struct transport_scratch *scratch)
{
    struct tls_connection *tls = tls_of(transport);
    if (tls->is_broken)
        return TRANSPORT_BROKEN;
    if (tls->has_eof)
        return TRANSPORT_EOF;
    /* An incomplete record that mbedtls keeps may yield up to one record more than what is received now. */
    CHECK(size > 2 * TRANSPORT_RECORD_SIZE);
    size_t room = size - TRANSPORT_RECORD_SIZE;
    ssize_t received = tcp_receive(tls->fd, scratch->cipher, room < sizeof scratch->cipher ? room : sizeof scratch->cipher);
    if (received < 0)
        return received;
    tls->input = scratch->cipher;
    tls->input_size = (size_t)received;
    ssize_t result = tls_read_records(tls, out, size);
    CHECK(tls->input_size == 0 || tls->is_broken || tls->has_eof);
    tls->input = NULL;
    tls->input_size = 0;
    return result;
}

/* Encrypt one record; false when the connection broke. */
static bool tls_write_record(struct tls_connection *tls, const uint8_t *data, size_t size)
{
    int code = mbedtls_ssl_write(&tls->ssl, data, size);
    if (code != (int)size)
        tls->is_broken = true;
    return !tls->is_broken;
}

/* Pieces are gathered into records of up to 16 KiB; large pieces are encrypted where they lie. Stops as soon as the socket is full. */
static ssize_t tls_write(struct transport *transport, const struct iovec *iov, int iov_count, struct transport_scratch *scratch)
{
    struct tls_connection *tls = tls_of(transport);
    int flushed = tls_flush(transport);
    if (flushed == TRANSPORT_BROKEN)
        return TRANSPORT_BROKEN;
    if (flushed == TRANSPORT_AGAIN)
        return 0;
    size_t taken = 0, gathered = 0;
    for (int i = 0; i < iov_count; i++) {
        const uint8_t *data = iov[i].iov_base;
        size_t rest = iov[i].iov_len;
        while (rest > 0) {
            size_t piece = TRANSPORT_RECORD_SIZE - gathered;
            if (piece > rest)
                piece = rest;
            bool is_direct = gathered == 0 && piece == TRANSPORT_RECORD_SIZE;
            if (!is_direct)
                memcpy(scratch->record + gathered, data, piece);
            gathered += piece;
            data += piece;
            rest -= piece;
            if (gathered < TRANSPORT_RECORD_SIZE)
                continue;
            if (!tls_write_record(tls, is_direct ? data - piece : scratch->record, gathered))
                return TRANSPORT_BROKEN;
            taken += gathered;
            gathered = 0;
            if (tls->pending_size > 0)
                return (ssize_t)taken;
        }
    }
    if (gathered > 0) {
        if (!tls_write_record(tls, scratch->record, gathered))
            return TRANSPORT_BROKEN;
        taken += gathered;
    }
    return (ssize_t)taken;
}

static void tls_shutdown(struct transport *transport)
{
    struct tls_connection *tls = tls_of(transport);
    if (tls->is_established && !tls->is_broken)
        (void)mbedtls_ssl_close_notify(&tls->ssl);
    (void)shutdown(transport->fd, SHUT_WR);
}

static void tls_free(struct transport *transport)
{
    struct tls_connection *tls = tls_of(transport);
    mbedtls_ssl_free(&tls->ssl);
    free(tls->pending);
    free(tls);
    close(transport->fd);
}

static const struct transport_ops tls_ops = {
    .name = "tls",
    .handshake = tls_handshake,
    .read = tls_read,
    .write = tls_write,
    .pending = tls_pending,
    .flush = tls_flush,
    .shutdown = tls_shutdown,
    .free = tls_free,
};

enum err tls_accept(struct transport *transport_out, struct tls_server *server, int fd)
{
    struct tls_connection *tls = calloc(1, sizeof *tls);
    if (!tls)
        return ERR_NOMEM;
    tls->fd = fd;
    mbedtls_ssl_init(&tls->ssl);
    if (mbedtls_ssl_setup(&tls->ssl, &server->config) != 0) {
        mbedtls_ssl_free(&tls->ssl);
        free(tls);
        return ERR_NOMEM;
    }
    mbedtls_ssl_set_bio(&tls->ssl, tls, tls_bio_send, tls_bio_receive, NULL);
    *transport_out = (struct transport){.ops = &tls_ops, .impl = tls, .fd = fd};
    return ERR_OK;
}

uint64_t tls_server_resumed(struct tls_server *server) { return atomic_load_explicit(&server->resumed, memory_order_relaxed); }
