/* What others feel while a few clients are given very much: retained values of a wildcard, or the wills that an earlier start left.
 *
 *   meanwhile --port P [--filter F] [--readers 1] [--count N] [--seconds S]
 *        So many clients subscribe to F at one moment, QoS 0. It ends when each has N messages, or S seconds after the first message of
 * all (without readers: after S seconds), and says how long that took. Meanwhile eight pairs of other clients send and take a thousand
 * messages a second of QoS 1 on `probe/N/t`, due by the clock and not by the last answer: time from then to PUBACK, and until the other
 * one of the pair has it; with readers and --seconds, of those due from the first message of all on. A persistent session that is away
 * wants them all, so that each is durable before its PUBACK. late: how long after its time one was sent, which is this program's own
 * waiting for a CPU: on a machine where that is much, the broker waits for one as well.
 *
 * Messages on `probe/...` are not counted as a reader's. Output: one line of `key=value`. */
#include <fcntl.h>
#include <sys/epoll.h>

#include "common/clock.h"
#include "common/histogram.h"
#include "tests/bench/bench_mqtt.h"
#include "tests/bench/bench_options.h"

#define PROBES 8
#define PROBES_PER_S 1000
#define READERS_MAX 256
#define IDS 65536
#define INPUT_MAX 262144
#define PATIENCE_S 120 /* without a first message, or until all have all */

struct client {
    int fd;
    uint16_t next_id;
    mono_ns *due; /* of what is not acknowledged, by packet id; a probe's publisher has one */
    bool is_reader;
    uint64_t count; /* a reader's messages */
    mono_ns all_at; /* it had all of them */
    uint8_t *input; /* a packet that is not complete begins here */
    size_t input_size;
};

static struct options {
    int port, readers;
    uint64_t count;
    double seconds;
    const char *filter;
} opt = {.readers = 1, .filter = "#"};

static struct client publishers[PROBES], listeners[PROBES], readers[READERS_MAX];
static struct histogram acked, given, late;
static mono_ns first_at;      /* the first message of any reader */
static mono_ns measured_from; /* probes due before do not count */
static int epoll_fd, done;

static void client_open(struct client *client, const char *kind, int index)
{
    char id[40];
    snprintf(id, sizeof id, "meanwhile-%s-%d-%d", kind, index, (int)getpid());
    client->fd = bench_connect(opt.port, id, true, NULL);
    client->input = malloc(INPUT_MAX);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, client->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = client});
}

static void leave_session(void)
{
    bool is_resumed;
    int fd = bench_connect(opt.port, "meanwhile-away", false, &is_resumed);
    if (!is_resumed)
        bench_subscribe(fd, "probe/#", 1);
    bench_send(fd, (uint8_t[]){0xe0, 0}, 2);
    close(fd);
}

/* What is measured begins with it, unless all of the readers' messages are. */
static void begin_wanted(mono_ns now)
{
    first_at = now;
    if (opt.count == 0)
        measured_from = now;
}

static void record(struct histogram *of, mono_ns due)
{
    if (due >= measured_from)
        histogram_record(of, (uint64_t)(clock_mono() - due));
}

static void on_publish(struct client *client, const uint8_t *packet, size_t size)
{
    const uint8_t *at = packet + 1;
    while (*at++ & 0x80) {
    }
    size_t topic_size = (size_t)(at[0] << 8 | at[1]);
    const uint8_t *topic = at + 2, *payload = topic + topic_size;
    bool is_probe = topic_size > 6 && !memcmp(topic, "probe/", 6);
    if (is_probe && !client->is_reader) {
        char text[32] = {0};
        memcpy(text, payload, packet + size - payload < 20 ? (size_t)(packet + size - payload) : 20);
        record(&given, strtoll(text, NULL, 10));
    }
    if (is_probe || !client->is_reader)
        return;
    mono_ns now = clock_mono();
    if (first_at == 0)
        begin_wanted(now);
    if (++client->count == opt.count) {
        client->all_at = now;
        done++;
    }
}

static void on_packet(struct client *client, const uint8_t *packet, size_t size)
{
    switch (packet[0] & 0xf0) {
    case 0x30:
        on_publish(client, packet, size);
        break;
    case 0x40:
        record(&acked, client->due[packet[2] << 8 | packet[3]]);
        break;
    case 0x90:
        if (packet[size - 1] > 2)
            bench_die("SUBSCRIBE refused");
        break;
    default:
        bench_die("a packet that nobody asked for");
    }
}

static void on_readable(struct client *client)
{
    ssize_t n = recv(client->fd, client->input + client->input_size, INPUT_MAX - client->input_size, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        bench_die("the server closed a connection");
    client->input_size += (size_t)n;
    size_t at = 0, size;
    while ((size = bench_packet_size(client->input + at, client->input_size - at)) > 0) {
        on_packet(client, client->input + at, size);
        at += size;
    }
    client->input_size -= at;
    memmove(client->input, client->input + at, client->input_size);
}

static void probe(int index, mono_ns due)
{
    struct client *publisher = &publishers[index];
    uint8_t packet[100];
    char topic[40], payload[32];
    uint16_t id = ++publisher->next_id ? publisher->next_id : ++publisher->next_id;
    snprintf(topic, sizeof topic, "probe/%d/t", index);
    snprintf(payload, sizeof payload, "%ld", (long)due);
    publisher->due[id] = due;
    record(&late, due);
    bench_send(publisher->fd, packet, bench_put_publish(packet, topic, payload, 1, id));
}

static bool is_over(mono_ns begun)
{
    mono_ns now = clock_mono(), from = opt.readers > 0 ? first_at : begun;
    if (now > begun + PATIENCE_S * NS_PER_S)
        bench_die("what was awaited did not come in time");
    return opt.count > 0 ? done == opt.readers : from > 0 && now >= from + (mono_ns)(opt.seconds * 1e9);
}

/* Returns when it ended. */
static mono_ns run(mono_ns begun)
{
    struct epoll_event events[64];
    mono_ns due = begun;
    for (uint64_t n = 0; !is_over(begun);) {
        for (; clock_mono() >= due; due += NS_PER_S / PROBES_PER_S)
            probe((int)(n++ % PROBES), due);
        int count = epoll_wait(epoll_fd, events, 64, 1);
        for (int i = 0; i < count; i++)
            on_readable(events[i].data.ptr);
    }
    return clock_mono();
}

static double milliseconds(mono_ns span) { return (double)span / 1e6; }
static double quantile_ms(struct histogram *of, double q) { return (double)histogram_quantile(of, q) / 1e6; }

static void measure(void)
{
    uint64_t messages = 0;
    mono_ns first_all = 0;
    char filter[40];
    epoll_fd = epoll_create1(0);
    leave_session();
    for (int i = 0; i < PROBES; i++) {
        client_open(&publishers[i], "publisher", i);
        publishers[i].due = calloc(IDS, sizeof(mono_ns));
        client_open(&listeners[i], "listener", i);
        snprintf(filter, sizeof filter, "probe/%d/t", i);
        bench_send_subscribe(listeners[i].fd, filter, 0);
    }
    for (int i = 0; i < opt.readers; i++) {
        readers[i].is_reader = true;
        client_open(&readers[i], "reader", i);
    }
    usleep(200000);
    mono_ns begun = clock_mono();
    for (int i = 0; i < opt.readers; i++)
        bench_send_subscribe(readers[i].fd, opt.filter, 0);
    mono_ns ended = run(begun);
    for (int i = 0; i < opt.readers; i++) {
        messages += readers[i].count;
        if (readers[i].all_at && (first_all == 0 || readers[i].all_at < first_all))
            first_all = readers[i].all_at;
    }
    double span_s = milliseconds(ended - (first_at && opt.count == 0 ? first_at : begun)) / 1e3;
    printf("readers=%d messages=%lu first_ms=%.1f one_has_all_s=%.2f all_s=%.2f per_s=%.0f ack_p50_ms=%.2f ack_p99_ms=%.2f ack_max_ms=%.1f "
           "given_p50_ms=%.2f given_p99_ms=%.2f given_max_ms=%.1f late_p99_ms=%.2f late_max_ms=%.1f\n",
           opt.readers, messages, first_at ? milliseconds(first_at - begun) : 0, first_all ? milliseconds(first_all - begun) / 1e3 : 0,
           span_s, (double)messages / span_s, quantile_ms(&acked, 0.5), quantile_ms(&acked, 0.99),
           milliseconds((mono_ns)histogram_max(&acked)), quantile_ms(&given, 0.5), quantile_ms(&given, 0.99),
           milliseconds((mono_ns)histogram_max(&given)), quantile_ms(&late, 0.99), milliseconds((mono_ns)histogram_max(&late)));
}

int main(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"port", .number = &opt.port},  {"filter", .text = &opt.filter},   {"readers", .number = &opt.readers},
        {"count", .count = &opt.count}, {"seconds", .real = &opt.seconds}, {0},
    };
    bench_options_parse(argc, argv, options);
    if (opt.port == 0 || opt.readers < 0 || opt.readers > READERS_MAX || (opt.count > 0) == (opt.seconds > 0) ||
        (opt.count && !opt.readers)) {
        fprintf(stderr, "usage: meanwhile --port P ... (see the head of meanwhile.c)\n");
        return 2;
    }
    histogram_init(&acked);
    histogram_init(&given);
    histogram_init(&late);
    measure();
    return 0;
}
