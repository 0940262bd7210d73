/* The floor: an epoll server that speaks just enough MQTT 3.1.1 to be loaded like a broker, and does nothing else. It reads, answers what
 * must be answered (CONNACK, PUBACK, PUBREC, PUBCOMP, PINGRESP) with one send a read, and discards. What a broker costs beyond it is the
 * broker's own.
 *
 * floor    prints the port it listens on, runs until it is killed. One thread. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define FD_MAX 20000
#define READ_SIZE 65536

struct peer {
    uint8_t *rest; /* an incomplete packet */
    size_t rest_size;
};

static struct peer peers[FD_MAX];
static uint8_t input[READ_SIZE * 2], output[READ_SIZE];

static size_t answer(uint8_t *out, const uint8_t *packet, const uint8_t *body)
{
    unsigned qos = packet[0] >> 1 & 3, topic_size = (unsigned)(body[0] << 8 | body[1]);
    const uint8_t *id = (packet[0] >> 4) == 3 ? body + 2 + topic_size : body;
    switch (packet[0] >> 4) {
    case 1:
        memcpy(out, "\x20\x02\x00\x00", 4);
        return 4;
    case 3:
        if (qos == 0)
            return 0;
        out[0] = qos == 1 ? 0x40 : 0x50;
        break;
    case 6:
        out[0] = 0x70;
        break;
    case 12:
        memcpy(out, "\xd0\x00", 2);
        return 2;
    default:
        return 0;
    }
    out[1] = 2;
    out[2] = id[0];
    out[3] = id[1];
    return 4;
}

/* All whole packets of [at, end); returns where the incomplete one begins. */
static const uint8_t *answer_all(uint8_t *out, size_t *out_size, const uint8_t *at, const uint8_t *end)
{
    while (end - at >= 2) {
        size_t length = 0, shift = 0, header = 1;
        while (at + header < end && header < 5) {
            length |= (size_t)(at[header] & 0x7f) << shift;
            shift += 7;
            if (!(at[header++] & 0x80))
                break;
        }
        if ((at[header - 1] & 0x80) || (size_t)(end - at) < header + length)
            break;
        *out_size += answer(out + *out_size, at, at + header);
        at += header + length;
    }
    return at;
}

static void serve(int fd)
{
    struct peer *peer = &peers[fd];
    size_t out_size = 0;
    if (peer->rest_size)
        memcpy(input, peer->rest, peer->rest_size);
    ssize_t got = recv(fd, input + peer->rest_size, READ_SIZE, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN)
            return;
        free(peer->rest);
        *peer = (struct peer){0};
        close(fd);
        return;
    }
    const uint8_t *end = input + peer->rest_size + got, *left = answer_all(output, &out_size, input, end);
    free(peer->rest);
    *peer = (struct peer){.rest_size = (size_t)(end - left)};
    if (peer->rest_size) {
        peer->rest = malloc(peer->rest_size);
        memcpy(peer->rest, left, peer->rest_size);
    }
    if (out_size && send(fd, output, out_size, MSG_NOSIGNAL) < 0)
        return;
}

static void accept_all(int epoll, int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FD_MAX) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 32768) ||
        getsockname(listener, (struct sockaddr *)&address, &size)) {
        perror("floor: listen");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    for (;;) {
        struct epoll_event events[1024];
        int count = epoll_wait(epoll, events, 1024, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                serve(events[i].data.fd);
        }
    }
}
