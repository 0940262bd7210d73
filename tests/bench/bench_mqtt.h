/* What the load programs say to a broker, as bytes: packets of MQTT 3.1.1 built by hand, and the handshake on a blocking socket. They share
 * no code with the broker, so what they cost is the same whatever it does. Any failure ends the program with a line on stderr.
 * Header-only; Linux. */
#ifndef TIDEGATE_TESTS_BENCH_BENCH_MQTT_H
#define TIDEGATE_TESTS_BENCH_BENCH_MQTT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

_Noreturn static inline void bench_die(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

/* Remaining length; returns its bytes. */
static inline size_t bench_put_length(uint8_t *at, size_t length)
{
    size_t size = 0;
    do {
        at[size] = (uint8_t)(length & 0x7f);
        length >>= 7;
        at[size++] |= length ? 0x80 : 0;
    } while (length);
    return size;
}

static inline size_t bench_put_string(uint8_t *at, const char *text)
{
    size_t size = strlen(text);
    at[0] = (uint8_t)(size >> 8);
    at[1] = (uint8_t)size;
    memcpy(at + 2, text, size);
    return size + 2;
}

static inline size_t bench_put_publish(uint8_t *at, const char *topic, const char *payload, int qos, int id)
{
    size_t topic_size = strlen(topic), payload_size = strlen(payload), used = 0;
    at[used++] = (uint8_t)(0x30 | qos << 1);
    used += bench_put_length(at + used, 2 + topic_size + (qos ? 2 : 0) + payload_size);
    used += bench_put_string(at + used, topic);
    if (qos) {
        at[used++] = (uint8_t)(id >> 8);
        at[used++] = (uint8_t)id;
    }
    memcpy(at + used, payload, payload_size);
    return used + payload_size;
}

/* A telemetry object of exactly `size` bytes (or as short as it can be), different for each device; `out` has room for size + 200. */
static inline void bench_make_payload(char *out, int size, int index)
{
    int used = snprintf(out, (size_t)size + 200, "{\"speed\":%d.%d,\"soc\":%d,\"temp\":%d.5", 40 + index % 60, index % 10, index % 100,
                        index % 30);
    for (int i = 0; used < size - 16; i++)
        used += snprintf(out + used, 40, ",\"m%02d\":%d", i % 100, 1000 + (index * 7 + i) % 9000);
    while (used < size - 1)
        out[used++] = ' ';
    out[used++] = '}';
    out[used] = '\0';
}

/* The packet at `at`: its whole size with header, or 0 while fewer bytes are there than it has. */
static inline size_t bench_packet_size(const uint8_t *at, size_t size)
{
    size_t length = 0;
    for (size_t i = 1; i < size && i < 5; i++) {
        length |= (size_t)(at[i] & 0x7f) << (7 * (i - 1));
        if (!(at[i] & 0x80))
            return i + 1 + length <= size ? i + 1 + length : 0;
    }
    return 0;
}

static inline void bench_read_exact(int fd, uint8_t *out, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = recv(fd, out + got, size - got, 0);
        if (n <= 0)
            bench_die("the server closed during the handshake");
        got += (size_t)n;
    }
}

static inline void bench_send(int fd, const uint8_t *bytes, size_t size)
{
    if (send(fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size)
        bench_die("send");
}

/* TCP and CONNECT (keep-alive 60); *resumed_out (may be NULL): whether there was a session. The caller's socket, blocking. */
static inline int bench_connect(int port, const char *id, bool clean_session, bool *resumed_out)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint8_t packet[200] = {0x10}, answer[4];
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    errno = 0;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        bench_die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_sec = 30}, sizeof(struct timeval));
    size_t used = 2;
    used += bench_put_string(packet + used, "MQTT");
    packet[used++] = 4;
    packet[used++] = clean_session ? 2 : 0;
    packet[used++] = 0;
    packet[used++] = 60;
    used += bench_put_string(packet + used, id);
    packet[1] = (uint8_t)(used - 2);
    bench_send(fd, packet, used);
    bench_read_exact(fd, answer, 4);
    if (answer[0] != 0x20 || answer[3] != 0) {
        fprintf(stderr, "bench: CONNACK refuses with code %d\n", answer[3]);
        exit(1);
    }
    if (resumed_out)
        *resumed_out = answer[2] & 1;
    return fd;
}

/* One filter; its SUBACK is the caller's to read. */
static inline void bench_send_subscribe(int fd, const char *filter, int qos)
{
    uint8_t packet[300] = {0x82};
    size_t used = 1 + bench_put_length(packet + 1, 2 + 2 + strlen(filter) + 1);
    packet[used++] = 0, packet[used++] = 1; /* packet id */
    used += bench_put_string(packet + used, filter);
    packet[used++] = (uint8_t)qos;
    bench_send(fd, packet, used);
}

/* One filter, and its SUBACK. Nothing else may be on its way to this client. */
static inline void bench_subscribe(int fd, const char *filter, int qos)
{
    uint8_t answer[5];
    bench_send_subscribe(fd, filter, qos);
    bench_read_exact(fd, answer, 5);
    if (answer[0] != 0x90 || answer[4] > 2)
        bench_die("SUBSCRIBE refused");
}

#endif
