/* What a session that is away costs in a broker that serves: real clients come, subscribe and leave, while others publish for them.
 *
 *   live --port PORT --pid PID [--sessions 30000] [--messages 10] [--inflight 0] [--batch 500] [--settle 25]
 *        Makes so many sessions, a batch of connections at a time: 24-byte client id, one 30-byte filter, QoS 1. While they are connected
 * each gets --inflight messages that it does not acknowledge; when it has left, --messages more, of 100 bytes. The anonymous memory of the
 * broker is read after the first third and at the end, each time --settle seconds after the last acknowledgement: the difference by the
 * sessions made in between is what one costs, without what the broker itself needs, and needed at its busiest.
 *
 * Output: one line of `key=value`. */
#include "tests/bench/bench_mqtt.h"
#include "tests/bench/bench_options.h"
#include "tests/bench/bench_util.h"

#define BATCH_MAX 10000
#define WINDOW 1000 /* messages of the publisher that wait for PUBACK */
#define PAYLOAD_SIZE 100

static int port, pid, sessions = 30000, messages = 10, inflight, batch = 500, settle_s = 25;
static int publisher, unacknowledged;

static void make_names(char id[32], char filter[40], int i)
{
    snprintf(id, 32, "device-%017d", i);
    snprintf(filter, 40, "fleet/%09d/commands/a/set", i);
}

static void await_acknowledgements(void)
{
    uint8_t answers[4 * WINDOW];
    bench_read_exact(publisher, answers, 4 * (size_t)unacknowledged);
    for (int i = 0; i < unacknowledged; i++)
        if (answers[4 * i] != 0x40)
            bench_die("not a PUBACK");
    unacknowledged = 0;
}

/* `count` messages for each of the sessions from..to, one for each after the other, and their acknowledgements. */
static void publish(int from, int to, int count)
{
    char id[32], filter[40], payload[PAYLOAD_SIZE + 200];
    uint8_t packet[400];
    for (int k = 0; k < count; k++) {
        for (int i = from; i < to; i++) {
            make_names(id, filter, i);
            bench_make_payload(payload, PAYLOAD_SIZE, i % 1000);
            bench_send(publisher, packet, bench_put_publish(packet, filter, payload, 1, 1 + unacknowledged));
            if (++unacknowledged == WINDOW)
                await_acknowledgements();
        }
    }
    await_acknowledgements();
}

/* Takes the messages and says nothing. */
static void take(int fd, int count)
{
    uint8_t packet[1000];
    size_t size = 0;
    while (count > 0) {
        ssize_t n = recv(fd, packet + size, sizeof packet - size, 0);
        if (n <= 0)
            bench_die("a message did not come");
        size += (size_t)n;
        for (size_t length; count > 0 && (length = bench_packet_size(packet, size)) > 0; count--) {
            if ((packet[0] & 0xf0) != 0x30)
                bench_die("not a PUBLISH");
            size -= length;
            memmove(packet, packet + length, size);
        }
    }
}

static void make_batch(int from, int to)
{
    static int fds[BATCH_MAX];
    char id[32], filter[40];
    for (int i = from; i < to; i++) {
        make_names(id, filter, i);
        fds[i - from] = bench_connect(port, id, false, NULL);
        bench_send_subscribe(fds[i - from], filter, 1);
    }
    for (int i = from; i < to; i++) {
        uint8_t answer[5];
        bench_read_exact(fds[i - from], answer, 5);
        if (answer[0] != 0x90 || answer[4] != 1)
            bench_die("SUBSCRIBE refused");
    }
    publish(from, to, inflight);
    for (int i = from; i < to; i++) {
        uint8_t end;
        take(fds[i - from], inflight);
        bench_send(fds[i - from], (uint8_t[]){0xe0, 0}, 2);
        shutdown(fds[i - from], SHUT_WR);
        while (recv(fds[i - from], &end, 1, 0) > 0) {
        }
        close(fds[i - from]);
    }
    publish(from, to, messages);
}

/* Returns the anonymous memory when it has settled. */
static uint64_t make_sessions(int from, int to)
{
    publisher = bench_connect(port, "backend", true, NULL);
    for (int i = from; i < to; i += batch)
        make_batch(i, i + batch < to ? i + batch : to);
    bench_send(publisher, (uint8_t[]){0xe0, 0}, 2);
    close(publisher);
    sleep((unsigned)settle_s);
    return bench_process_anonymous(pid);
}

int main(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"port", .number = &port},         {"pid", .number = &pid},
        {"sessions", .number = &sessions}, {"messages", .number = &messages},
        {"inflight", .number = &inflight}, {"batch", .number = &batch},
        {"settle", .number = &settle_s},   {0},
    };
    bench_options_parse(argc, argv, options);
    if (port <= 0 || pid <= 0 || sessions < 3 || messages < 0 || inflight < 0 || batch < 1 || batch > BATCH_MAX || settle_s < 0) {
        fprintf(stderr, "usage: live --port PORT --pid PID ... (see the head of live.c)\n");
        return 2;
    }
    int third = sessions / 3;
    uint64_t before = make_sessions(0, third), after = make_sessions(third, sessions);
    printf("sessions=%d messages=%d inflight=%d anonymous_at_third=%lu anonymous=%lu slope=%.0f\n", sessions, messages, inflight,
           (unsigned long)before, (unsigned long)after, ((double)after - (double)before) / (sessions - third));
    return 0;
}
