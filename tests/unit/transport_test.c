/* Plain and TLS transports over a socket pair; the client's side is mbedtls itself, with certificates made by the test. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/ecp.h>
#include <mbedtls/entropy.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_internal.h>
#include <mbedtls/x509_crt.h>

#include "broker/net/tcp.h"
#include "broker/net/tls.h"

static char directory[] = "/tmp/tidegate-tls-XXXXXX";
static char certificate_path[64], key_path[64], other_key_path[64];
static mbedtls_entropy_context entropy;
static mbedtls_ctr_drbg_context drbg;
static struct transport_scratch scratch;
static uint8_t buffer[98304];

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void make_key(mbedtls_pk_context *key, const char *path)
{
    unsigned char pem[4096];
    mbedtls_pk_init(key);
    assert_int_equal(mbedtls_pk_setup(key, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)), 0);
    assert_int_equal(mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(*key), mbedtls_ctr_drbg_random, &drbg), 0);
    assert_int_equal(mbedtls_pk_write_key_pem(key, pem, sizeof pem), 0);
    write_file(path, (const char *)pem);
}

static int make_files(void **state)
{
    (void)state;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&drbg);
    assert_int_equal(mbedtls_ctr_drbg_seed(&drbg, mbedtls_entropy_func, &entropy, NULL, 0), 0);
    assert_non_null(mkdtemp(directory));
    (void)snprintf(certificate_path, sizeof certificate_path, "%s/server.crt", directory);
    (void)snprintf(key_path, sizeof key_path, "%s/server.key", directory);
    (void)snprintf(other_key_path, sizeof other_key_path, "%s/other.key", directory);
    mbedtls_pk_context key, other;
    make_key(&other, other_key_path);
    mbedtls_pk_free(&other);
    make_key(&key, key_path);
    mbedtls_x509write_cert crt;
    mbedtls_mpi serial;
    mbedtls_mpi_init(&serial);
    assert_int_equal(mbedtls_mpi_lset(&serial, 1), 0);
    mbedtls_x509write_crt_init(&crt);
    mbedtls_x509write_crt_set_subject_key(&crt, &key);
    mbedtls_x509write_crt_set_issuer_key(&crt, &key);
    assert_int_equal(mbedtls_x509write_crt_set_subject_name(&crt, "CN=localhost"), 0);
    assert_int_equal(mbedtls_x509write_crt_set_issuer_name(&crt, "CN=localhost"), 0);
    mbedtls_x509write_crt_set_md_alg(&crt, MBEDTLS_MD_SHA256);
    assert_int_equal(mbedtls_x509write_crt_set_serial(&crt, &serial), 0);
    assert_int_equal(mbedtls_x509write_crt_set_validity(&crt, "20200101000000", "20991231235959"), 0);
    unsigned char pem[4096];
    assert_int_equal(mbedtls_x509write_crt_pem(&crt, pem, sizeof pem, mbedtls_ctr_drbg_random, &drbg), 0);
    write_file(certificate_path, (const char *)pem);
    mbedtls_x509write_crt_free(&crt);
    mbedtls_mpi_free(&serial);
    mbedtls_pk_free(&key);
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    unlink(certificate_path);
    unlink(key_path);
    unlink(other_key_path);
    rmdir(directory);
    mbedtls_ctr_drbg_free(&drbg);
    mbedtls_entropy_free(&entropy);
    return 0;
}

/* The client: mbedtls over the other end of the pair, non-blocking. */
struct peer {
    int fd;
    mbedtls_ssl_context ssl;
    mbedtls_ssl_config config;
};

static int peer_send(void *arg, const unsigned char *data, size_t size)
{
    ssize_t sent = send(*(int *)arg, data, size, MSG_NOSIGNAL);
    return sent >= 0 ? (int)sent : MBEDTLS_ERR_SSL_WANT_WRITE;
}
static int peer_receive(void *arg, unsigned char *data, size_t size)
{
    ssize_t got = recv(*(int *)arg, data, size, 0);
    return got >= 0 ? (int)got : MBEDTLS_ERR_SSL_WANT_READ;
}

static void peer_init(struct peer *peer, int fd, const mbedtls_ssl_session *session)
{
    peer->fd = fd;
    mbedtls_ssl_init(&peer->ssl);
    mbedtls_ssl_config_init(&peer->config);
    assert_int_equal(
        mbedtls_ssl_config_defaults(&peer->config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT), 0);
    mbedtls_ssl_conf_rng(&peer->config, mbedtls_ctr_drbg_random, &drbg);
    mbedtls_ssl_conf_authmode(&peer->config, MBEDTLS_SSL_VERIFY_NONE);
    assert_int_equal(mbedtls_ssl_setup(&peer->ssl, &peer->config), 0);
    if (session)
        assert_int_equal(mbedtls_ssl_set_session(&peer->ssl, session), 0);
    mbedtls_ssl_set_bio(&peer->ssl, &peer->fd, peer_send, peer_receive, NULL);
}

static void peer_deinit(struct peer *peer)
{
    mbedtls_ssl_free(&peer->ssl);
    mbedtls_ssl_config_free(&peer->config);
    close(peer->fd);
}

static struct tls_server *server_new(void)
{
    struct tls_server *server = NULL;
    struct errmsg msg = {{0}};
    assert_int_equal(tls_server_new(&server, &(struct tls_files){certificate_path, key_path}, &msg), 0);
    return server;
}

static void make_pair(int fds[2], int send_size)
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    if (send_size > 0)
        assert_int_equal(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &send_size, sizeof send_size), 0);
}

static void shake_hands(struct transport *transport, struct peer *peer)
{
    struct errmsg why = {{0}};
    bool server_done = false;
    for (int i = 0; i < 100; i++) {
        int code = mbedtls_ssl_handshake(&peer->ssl);
        enum transport_step step = server_done ? TRANSPORT_DONE : transport_handshake(transport, &why);
        assert_int_not_equal(step, TRANSPORT_FAILED);
        server_done = step == TRANSPORT_DONE;
        if (code == 0 && server_done)
            return;
    }
    fail_msg("no end of the handshake");
}

/* Over a pair of sockets whose send buffer has this size (0: as large as it comes), to the end of the handshake. */
static void connect_securely(struct transport *transport, struct peer *peer, struct tls_server *server, int send_size,
                             const mbedtls_ssl_session *session)
{
    int fds[2];
    make_pair(fds, send_size);
    assert_int_equal(tls_accept(transport, server, fds[0]), 0);
    peer_init(peer, fds[1], session);
    shake_hands(transport, peer);
}

static void plain_reads_and_writes(void **state)
{
    (void)state;
    int fds[2];
    make_pair(fds, 0);
    struct transport transport = tcp_transport(fds[0]);
    struct errmsg why;
    assert_int_equal(transport_handshake(&transport, &why), TRANSPORT_DONE);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), TRANSPORT_AGAIN);
    struct iovec iov[2] = {{.iov_base = (char[]){"one"}, .iov_len = 3}, {.iov_base = (char[]){"two"}, .iov_len = 3}};
    assert_int_equal(transport_write(&transport, iov, 2, &scratch), 6);
    assert_int_equal(recv(fds[1], buffer, sizeof buffer, 0), 6);
    assert_memory_equal(buffer, "onetwo", 6);
    assert_int_equal(send(fds[1], "xyz", 3, 0), 3);
    close(fds[1]);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), 3);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), TRANSPORT_EOF);
    assert_int_equal(transport_write(&transport, iov, 2, &scratch), TRANSPORT_BROKEN);
    transport_free(&transport);
}

static void tls_reads_and_writes(void **state)
{
    (void)state;
    struct tls_server *server = server_new();
    struct transport transport;
    struct peer peer;
    connect_securely(&transport, &peer, server, 0, NULL);
    assert_string_equal(mbedtls_ssl_get_version(&peer.ssl), "TLSv1.2");
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), TRANSPORT_AGAIN);
    /* Several records are one read. */
    assert_int_equal(mbedtls_ssl_write(&peer.ssl, (const unsigned char *)"hello ", 6), 6);
    assert_int_equal(mbedtls_ssl_write(&peer.ssl, (const unsigned char *)"world", 5), 5);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), 11);
    assert_memory_equal(buffer, "hello world", 11);
    /* Pieces are gathered into one record. */
    struct iovec iov[2] = {{.iov_base = (char[]){"answer "}, .iov_len = 7}, {.iov_base = (char[]){"42"}, .iov_len = 2}};
    assert_int_equal(transport_write(&transport, iov, 2, &scratch), 9);
    assert_int_equal(mbedtls_ssl_read(&peer.ssl, buffer, sizeof buffer), 9);
    assert_memory_equal(buffer, "answer 42", 9);
    /* Data, then the end, in one arrival: both are told. */
    assert_int_equal(mbedtls_ssl_write(&peer.ssl, (const unsigned char *)"bye", 3), 3);
    assert_int_equal(mbedtls_ssl_close_notify(&peer.ssl), 0);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), 3);
    assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), TRANSPORT_EOF);
    transport_shutdown(&transport);
    peer_deinit(&peer);
    transport_free(&transport);
    tls_server_free(server);
}

/* A large message through a small socket buffer: what is taken arrives, in order, nothing twice. */
static void tls_writes_against_a_full_socket(void **state)
{
    (void)state;
    enum { SIZE = 300000 };
    struct tls_server *server = server_new();
    struct transport transport;
    struct peer peer;
    connect_securely(&transport, &peer, server, 4096, NULL);
    uint8_t *message = malloc(SIZE), *received = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        message[i] = (uint8_t)(i * 31 + i / 251);
    size_t sent = 0, got = 0, blocked = 0;
    while (got < SIZE) {
        if (sent < SIZE) {
            size_t first = sent % 7 + 1 < SIZE - sent ? sent % 7 + 1 : SIZE - sent;
            struct iovec iov[2] = {{.iov_base = message + sent, .iov_len = first},
                                   {.iov_base = message + sent + first, .iov_len = SIZE - sent - first}};
            ssize_t taken = transport_write(&transport, iov, 2, &scratch);
            assert_true(taken >= 0);
            blocked += sent + (size_t)taken < SIZE;
            sent += (size_t)taken;
        } else {
            assert_int_not_equal(transport_flush(&transport), TRANSPORT_BROKEN);
        }
        assert_true(transport_pending(&transport) < 2 * TRANSPORT_RECORD_SIZE);
        int code = mbedtls_ssl_read(&peer.ssl, received + got, SIZE - got);
        if (code > 0)
            got += (size_t)code;
        else
            assert_int_equal(code, MBEDTLS_ERR_SSL_WANT_READ);
    }
    assert_true(blocked > 0);
    assert_memory_equal(message, received, SIZE);
    assert_int_equal(transport_pending(&transport), 0);
    free(message);
    free(received);
    peer_deinit(&peer);
    transport_free(&transport);
    tls_server_free(server);
}

/* Renegotiation is refused by an alert each; who asks for ever and takes no answer does not fill our memory with them. */
static void tls_refusals_do_not_pile_up(void **state)
{
    (void)state;
    struct tls_server *server = server_new();
    struct transport transport;
    struct peer peer;
    connect_securely(&transport, &peer, server, 4096, NULL);
    ssize_t result = TRANSPORT_AGAIN;
    for (int i = 0; i < 20000 && result == TRANSPORT_AGAIN; i++) {
        peer.ssl.out_msgtype = MBEDTLS_SSL_MSG_HANDSHAKE;
        peer.ssl.out_msglen = 4;
        memcpy(peer.ssl.out_msg, "\x01\0\0\0", 4); /* the head of a ClientHello */
        assert_int_equal(mbedtls_ssl_write_record(&peer.ssl, 1), 0);
        result = transport_read(&transport, buffer, sizeof buffer, &scratch);
        assert_true(transport_pending(&transport) <= 65536);
    }
    assert_int_equal(result, TRANSPORT_BROKEN);
    peer_deinit(&peer);
    transport_free(&transport);
    tls_server_free(server);
}

static void tls_resumes_by_ticket(void **state)
{
    (void)state;
    struct tls_server *server = server_new();
    mbedtls_ssl_session session;
    mbedtls_ssl_session_init(&session);
    for (int round = 0; round < 2; round++) {
        struct transport transport;
        struct peer peer;
        /* The first packet behind the client's last flight must not be lost to the handshake. */
        connect_securely(&transport, &peer, server, 0, round == 0 ? NULL : &session);
        assert_int_equal(mbedtls_ssl_write(&peer.ssl, (const unsigned char *)"x", 1), 1);
        assert_int_equal(transport_read(&transport, buffer, sizeof buffer, &scratch), 1);
        if (round == 0)
            assert_int_equal(mbedtls_ssl_get_session(&peer.ssl, &session), 0);
        assert_int_equal(tls_server_resumed(server), round);
        peer_deinit(&peer);
        transport_free(&transport);
    }
    mbedtls_ssl_session_free(&session);
    tls_server_free(server);
}

static void tls_refuses_what_is_not_tls(void **state)
{
    (void)state;
    struct tls_server *server = server_new();
    int fds[2];
    make_pair(fds, 0);
    struct transport transport;
    struct errmsg why = {{0}};
    assert_int_equal(tls_accept(&transport, server, fds[0]), 0);
    assert_int_equal(transport_handshake(&transport, &why), TRANSPORT_WANT_READ);
    assert_int_equal(send(fds[1], "\x10\x0c\0\4MQTT\4\2\0\0\0\0", 14, 0), 14);
    assert_int_equal(transport_handshake(&transport, &why), TRANSPORT_FAILED);
    assert_true(strlen(why.text) > 0);
    transport_free(&transport);
    close(fds[1]);
    tls_server_free(server);
}

static void tls_says_which_file_and_why(void **state)
{
    (void)state;
    struct tls_server *server = NULL;
    struct errmsg msg;
    assert_int_equal(tls_server_new(&server, &(struct tls_files){"/nowhere/a.crt", key_path}, &msg), ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "certfile /nowhere/a.crt: No such file"));
    assert_int_equal(tls_server_new(&server, &(struct tls_files){certificate_path, "/nowhere/a.key"}, &msg), ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "keyfile /nowhere/a.key"));
    assert_int_equal(tls_server_new(&server, &(struct tls_files){key_path, key_path}, &msg), ERR_INVALID);
    assert_non_null(strstr(msg.text, "certfile"));
    assert_int_equal(tls_server_new(&server, &(struct tls_files){certificate_path, other_key_path}, &msg), ERR_INVALID);
    assert_non_null(strstr(msg.text, "is not the key of"));
    assert_null(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_reads_and_writes),
        cmocka_unit_test(tls_reads_and_writes),
        cmocka_unit_test(tls_writes_against_a_full_socket),
        cmocka_unit_test(tls_refusals_do_not_pile_up),
        cmocka_unit_test(tls_resumes_by_ticket),
        cmocka_unit_test(tls_refuses_what_is_not_tls),
        cmocka_unit_test(tls_says_which_file_and_why),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
