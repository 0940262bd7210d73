/* Publishers and online persistent subscribers in one process: one thread, epoll, packets built once. QoS 1 all the way.
 *
 *   fanout --port P --pid SERVER [--subscribers 1000] [--publishers 1] [--batch 1] [--payload 200] [--seconds 5]
 *
 * With one publisher all subscribers have the same filter, and each message is delivered to all of them; otherwise there are as many
 * publishers as subscribers, with a topic each. Subscribers have sessions that stay (clean session 0, the same client ids at every run) and
 * acknowledge what one read brought with one write. Closed loop: a publisher has at most two batches of --batch messages (a segment each)
 * that are not acknowledged, and at most one that is not with its subscribers yet when it begins another; so nothing but the pipe is
 * measured, and the broker's queues stay short.
 *
 * A first span of a fifth of --seconds warms up and is not counted. At the end all that is on its way is taken, so that the next run finds
 * empty queues. Output: one line of `key=value`; rate and CPU are for a delivery, not for a PUBLISH. */
#include <fcntl.h>
#include <sys/epoll.h>

#include "common/clock.h"
#include "common/histogram.h"
#include "tests/bench/bench_mqtt.h"
#include "tests/bench/bench_options.h"
#include "tests/bench/bench_util.h"

#define LINKS_MAX 4000
#define INPUT_SIZE (256u << 10)
#define BATCHES 2 /* of a publisher on their way at a time */

struct options {
    int port, pid, subscribers, publishers, batch, payload;
    double seconds;
};

/* One client: a publisher, or a subscriber of one. */
struct link {
    int fd;
    struct link *publisher; /* NULL: it is one itself */
    uint8_t *rest;          /* a packet cut by a read */
    size_t rest_size;
    /* Publisher: */
    uint8_t *packets; /* BATCHES batches with packet ids of their own, in turn */
    size_t packets_size[BATCHES];
    int turn, unacked, undelivered;
    mono_ns begun[BATCHES];
};

static struct options opt = {.subscribers = 1000, .publishers = 1, .batch = 1, .payload = 200, .seconds = 5};
static struct link links[LINKS_MAX]; /* publishers, then subscribers */
static struct histogram ack_latency;
static uint64_t delivered;
static int epoll_fd;
static bool is_ending;

static int copies(void) { return opt.publishers == 1 ? opt.subscribers : 1; }

static void begin_batch(struct link *link)
{
    uint8_t *at = link->packets + (link->turn ? link->packets_size[0] : 0);
    link->begun[link->turn] = clock_mono();
    link->unacked += opt.batch;
    link->undelivered += opt.batch * copies();
    bench_send(link->fd, at, link->packets_size[link->turn]); /* far below the socket's buffer */
    link->turn = (link->turn + 1) % BATCHES;
}

static void publish_more(struct link *link)
{
    while (!is_ending && link->unacked <= (BATCHES - 1) * opt.batch && link->undelivered <= opt.batch * copies())
        begin_batch(link);
}

/* Returns the bytes of the answer put at `out`. */
static size_t on_packet(struct link *link, uint8_t *out, const uint8_t *packet)
{
    if (packet[0] == 0x40 && !link->publisher) {
        int id = packet[2] << 8 | packet[3];
        histogram_record(&ack_latency, (uint64_t)(clock_mono() - link->begun[(id - 1) / opt.batch]));
        link->unacked--;
        return 0;
    }
    if ((packet[0] & 0xf6) != 0x32 || !link->publisher) {
        fprintf(stderr, "fanout: unexpected packet 0x%02x\n", packet[0]);
        exit(1);
    }
    const uint8_t *topic = packet + 1;
    while (*topic++ & 0x80) {
    }
    const uint8_t *id = topic + 2 + (topic[0] << 8 | topic[1]);
    memcpy(out, (uint8_t[]){0x40, 2, id[0], id[1]}, 4);
    link->publisher->undelivered--;
    delivered++;
    return 4;
}

static void on_readable(struct link *link)
{
    static uint8_t input[INPUT_SIZE], output[INPUT_SIZE];
    memcpy(input, link->rest, link->rest_size);
    ssize_t n = recv(link->fd, input + link->rest_size, sizeof input - link->rest_size, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        bench_die("the server closed a connection");
    size_t size = (size_t)n + link->rest_size, at = 0, packet, out_size = 0;
    for (; (packet = bench_packet_size(input + at, size - at)) > 0; at += packet)
        out_size += on_packet(link, output + out_size, input + at);
    link->rest_size = size - at;
    memcpy(link->rest, input + at, link->rest_size);
    if (out_size)
        bench_send(link->fd, output, out_size);
    publish_more(link->publisher ? link->publisher : link);
}

static void run_until(mono_ns end)
{
    struct epoll_event events[1024];
    do {
        int count = epoll_wait(epoll_fd, events, 1024, 10);
        for (int i = 0; i < count; i++)
            on_readable(events[i].data.ptr);
    } while (clock_mono() < end);
}

static void prepare_publisher(struct link *link, const char *topic, int index)
{
    char *payload = malloc((size_t)opt.payload + 300);
    link->packets = malloc((size_t)BATCHES * (size_t)opt.batch * ((size_t)opt.payload + 400));
    if (!payload || !link->packets)
        bench_die("memory");
    bench_make_payload(payload, opt.payload, index);
    uint8_t *at = link->packets;
    for (int i = 0; i < BATCHES * opt.batch; i++) {
        size_t size = bench_put_publish(at, topic, payload, 1, i + 1);
        link->packets_size[i / opt.batch] += size;
        at += size;
    }
    free(payload);
}

static void open_link(struct link *link, const char *id, struct link *publisher)
{
    link->publisher = publisher;
    link->fd = bench_connect(opt.port, id, publisher == NULL, NULL);
    link->rest = malloc((size_t)opt.payload + 500);
    if (!link->rest)
        bench_die("memory");
}

/* All the other clients first: what the last run left behind for a session would come before the SUBACK. */
static void open_links(void)
{
    char id[40], topic[100];
    for (int i = 0; i < opt.publishers; i++) {
        snprintf(id, sizeof id, "fan-publisher-%010d", i);
        snprintf(topic, sizeof topic, "fan/%07d/commands/all/set", i);
        open_link(&links[i], id, NULL);
        prepare_publisher(&links[i], topic, i);
    }
    for (int i = 0; i < opt.subscribers; i++) {
        int from = opt.publishers == 1 ? 0 : i;
        snprintf(id, sizeof id, "fan-subscriber-%s-%05d", opt.publishers == 1 ? "all" : "one", i);
        snprintf(topic, sizeof topic, "fan/%07d/commands/all/set", from);
        open_link(&links[opt.publishers + i], id, &links[from]);
        bench_subscribe(links[opt.publishers + i].fd, topic, 1);
    }
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < opt.publishers + opt.subscribers; i++) {
        fcntl(links[i].fd, F_SETFL, O_NONBLOCK);
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, links[i].fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &links[i]});
    }
}

/* Take what is on its way, and say goodbye. */
static void close_links(void)
{
    static const uint8_t disconnect[] = {0xe0, 0};
    bool is_left = true;
    is_ending = true;
    for (mono_ns end = clock_mono() + 10 * NS_PER_S; is_left && clock_mono() < end;) {
        run_until(clock_mono() + 20 * NS_PER_MS);
        is_left = false;
        for (int i = 0; i < opt.publishers; i++)
            is_left = is_left || links[i].undelivered || links[i].unacked;
    }
    if (is_left)
        fprintf(stderr, "fanout: not everything was delivered within 10 s\n");
    for (int i = 0; i < opt.publishers + opt.subscribers; i++)
        bench_send(links[i].fd, disconnect, sizeof disconnect);
}

static void measure(void)
{
    open_links();
    for (int i = 0; i < opt.publishers; i++)
        publish_more(&links[i]);
    run_until(clock_mono() + (int64_t)(opt.seconds / 5 * 1e9));
    histogram_init(&ack_latency);
    uint64_t count = delivered, cpu = bench_process_cpu_ns(opt.pid), own = bench_process_cpu_ns((int)getpid());
    mono_ns start = clock_mono();
    run_until(start + (int64_t)(opt.seconds * 1e9));
    double took = (double)(clock_mono() - start) / 1e9;
    count = delivered - count;
    cpu = bench_process_cpu_ns(opt.pid) - cpu;
    own = bench_process_cpu_ns((int)getpid()) - own;
    close_links();
    printf("publishers=%d subscribers=%d batch=%d messages=%lu rate=%.0f server_us_per_message=%.3f server_cpu=%.2f load_cpu=%.2f "
           "ack_p50_us=%.0f ack_p99_us=%.0f all_messages=%lu\n",
           opt.publishers, opt.subscribers, opt.batch, count, (double)count / took, (double)cpu / 1e3 / (double)count,
           (double)cpu / 1e9 / took, (double)own / 1e9 / took, (double)histogram_quantile(&ack_latency, 0.5) / 1e3,
           (double)histogram_quantile(&ack_latency, 0.99) / 1e3, delivered);
}

int main(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"port", .number = &opt.port},
        {"pid", .number = &opt.pid},
        {"subscribers", .number = &opt.subscribers},
        {"publishers", .number = &opt.publishers},
        {"batch", .number = &opt.batch},
        {"payload", .number = &opt.payload},
        {"seconds", .real = &opt.seconds},
        {0},
    };
    bench_options_parse(argc, argv, options);
    if (opt.port == 0 || opt.batch < 1 || opt.batch > 1000 || opt.payload < 50 || opt.payload > 2000 || opt.subscribers < 1 ||
        opt.publishers < 1 || (opt.publishers != 1 && opt.publishers != opt.subscribers) || opt.publishers + opt.subscribers > LINKS_MAX) {
        fprintf(stderr, "usage: fanout --port P --pid SERVER ... (see the head of fanout.c)\n");
        return 2;
    }
    histogram_init(&ack_latency);
    measure();
    return 0;
}
