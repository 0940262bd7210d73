/* A lean load generator: one process, one thread, epoll, packets built once. It measures from outside what the server costs: CPU of all its
 * threads (scheduler's count) and anonymous memory, from /proc, over the measured span alone.
 *
 *   load publish --port P --pid SERVER [--qos 0|1|2] [--connections 1000] [--batch 1] [--payload 200] [--seconds 5] [--rate MSGS_PER_S]
 *                [--topic 'fleet/dev%d/telemetry']
 *        Closed loop at QoS 1 and 2: each connection sends a batch in one segment and the next one when all of it is acknowledged. At QoS 0
 * each connection sends a batch a round. With --rate, all connections together keep to it, evenly spread (open loop in batches). load
 * latency  --port P [--seconds 5] [--payload 200] One client, one QoS 1 PUBLISH in flight; p50, p99, max of PUBACK. load idle     --port P
 * --pid SERVER [--from 1000] [--to 15000] [--filter F] Slope of anonymous memory per idle connection with a 24-byte client id, keep-alive
 * 60; with --filter one 30-byte filter each.
 *
 * A first span of a fifth of --seconds warms up and is not counted. Output: one line of `key=value`. */
#include <fcntl.h>
#include <sys/epoll.h>

#include "common/clock.h"
#include "common/histogram.h"
#include "tests/bench/bench_mqtt.h"
#include "tests/bench/bench_options.h"
#include "tests/bench/bench_util.h"

#define CONNECTIONS_MAX 19000
#define PACKET_MAX 70000

struct options {
    int port, pid, qos, connections, batch, payload, from, to;
    double seconds, rate;
    const char *topic, *filter;
};

/* One client connection. */
struct link {
    int fd;
    uint8_t *packets; /* a batch, as it is sent; packet ids 1..batch */
    size_t packets_size;
    size_t sent;     /* bytes of the batch given to the kernel */
    int unacked;     /* acknowledgements of the batch still to come */
    uint8_t rest[4]; /* an acknowledgement cut by a read */
    size_t rest_size;
    mono_ns begun;
};

static struct options opt = {
    .qos = 1, .connections = 1000, .batch = 1, .payload = 200, .seconds = 5, .from = 1000, .to = 15000, .topic = "fleet/dev%d/telemetry"};
static struct link links[CONNECTIONS_MAX];
static struct histogram ack_latency;
static uint64_t messages_done;
static int epoll_fd;

static void link_prepare(struct link *link, int index)
{
    char topic[1000], *payload = malloc((size_t)opt.payload + 300);
    link->packets = malloc((size_t)opt.batch * ((size_t)opt.payload + 1100));
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(topic, sizeof topic, opt.topic, index);
#pragma GCC diagnostic pop
    bench_make_payload(payload, opt.payload, index);
    for (int i = 0; i < opt.batch; i++)
        link->packets_size += bench_put_publish(link->packets + link->packets_size, topic, payload, opt.qos, i + 1);
    link->sent = link->packets_size;
    free(payload);
}

/* Connect, CONNECT, CONNACK, and a SUBSCRIBE when a filter is given; blocking, one at a time. */
static void link_open(struct link *link, int index)
{
    char id[40], filter[200];
    snprintf(id, sizeof id, "bench-client-%011d", index);
    link->fd = bench_connect(opt.port, id, true, NULL);
    if (opt.filter) {
        snprintf(filter, sizeof filter, "%s/%09d", opt.filter, index);
        bench_subscribe(link->fd, filter, 0);
    }
    fcntl(link->fd, F_SETFL, O_NONBLOCK);
}

/* Give what is left of the batch to the kernel. False when it takes no more now. */
static bool link_send(struct link *link)
{
    while (link->sent < link->packets_size) {
        ssize_t n = send(link->fd, link->packets + link->sent, link->packets_size - link->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n < 0)
            bench_die("send");
        link->sent += (size_t)n;
    }
    if (opt.qos == 0)
        messages_done += (uint64_t)opt.batch;
    return true;
}

static void link_begin_batch(struct link *link)
{
    link->sent = 0;
    link->unacked = opt.qos ? opt.batch : 0;
    link->begun = clock_mono();
    link_send(link);
}

/* A 4-byte acknowledgement: PUBACK and PUBCOMP end a message, PUBREC asks for a PUBREL. Returns the bytes put at `out`. */
static size_t link_on_ack(struct link *link, uint8_t *out, const uint8_t *ack)
{
    if (ack[0] == 0x50) {
        memcpy(out, (uint8_t[]){0x62, 2, ack[2], ack[3]}, 4);
        return 4;
    }
    if (ack[0] != 0x40 && ack[0] != 0x70) {
        fprintf(stderr, "load: unexpected packet 0x%02x\n", ack[0]);
        exit(1);
    }
    histogram_record(&ack_latency, (uint64_t)(clock_mono() - link->begun));
    messages_done++;
    link->unacked--;
    return 0;
}

static void link_on_readable(struct link *link)
{
    uint8_t input[16384], output[sizeof input];
    memcpy(input, link->rest, link->rest_size);
    ssize_t n = recv(link->fd, input + link->rest_size, sizeof input - sizeof link->rest, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        bench_die("the server closed a connection");
    size_t size = (size_t)n + link->rest_size, at = 0, out_size = 0;
    for (; size - at >= 4; at += 4)
        out_size += link_on_ack(link, output + out_size, input + at);
    link->rest_size = size - at;
    memcpy(link->rest, input + at, link->rest_size);
    if (out_size && send(link->fd, output, out_size, MSG_NOSIGNAL) != (ssize_t)out_size)
        bench_die("PUBREL");
}

/* Take what acknowledgements there are, waiting at most `timeout_ms`; in the closed loop each finished batch begins the next. */
static void poll_links(int timeout_ms, bool closed_loop)
{
    struct epoll_event events[1024];
    int count = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct link *link = events[i].data.ptr;
        link_on_readable(link);
        if (closed_loop && link->unacked == 0)
            link_begin_batch(link);
    }
}

/* One round over all connections for open loops: those whose last batch is out and acknowledged begin another, as far as `due` allows. */
static int round_links(int *next, int due)
{
    int begun = 0;
    for (int i = 0; i < opt.connections && begun < due; i++) {
        struct link *link = &links[*next];
        *next = (*next + 1) % opt.connections;
        if (link->sent < link->packets_size) {
            link_send(link);
            continue;
        }
        if (link->unacked)
            continue;
        link_begin_batch(link);
        begun++;
    }
    return begun;
}

static void run_for(double seconds)
{
    static int next;
    mono_ns start = clock_mono(), end = start + (int64_t)(seconds * 1e9), now;
    double begun = 0, interval = opt.rate > 0 ? opt.batch * 1e9 / opt.rate : 0;
    bool closed = opt.qos > 0 && opt.rate <= 0;
    if (closed)
        for (int i = 0; i < opt.connections; i++)
            if (links[i].unacked == 0)
                link_begin_batch(&links[i]);
    while ((now = clock_mono()) < end) {
        if (closed) {
            poll_links(10, true);
        } else if (opt.rate > 0) {
            int due = (int)((double)(now - start) / interval - begun);
            begun += due; /* a batch that finds all connections busy is left out, and seen in the rate */
            round_links(&next, due);
            poll_links(due ? 0 : 1, false);
        } else {
            round_links(&next, opt.connections);
        }
    }
}

static void open_links(int from, int to)
{
    for (int i = from; i < to; i++)
        link_open(&links[i], i);
}

static void watch_links(void)
{
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < opt.connections; i++)
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, links[i].fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &links[i]});
}

static int publish(void)
{
    open_links(0, opt.connections);
    for (int i = 0; i < opt.connections; i++)
        link_prepare(&links[i], i);
    watch_links();
    run_for(opt.seconds / 5);
    histogram_init(&ack_latency);
    uint64_t warm_up = messages_done, messages = warm_up, cpu = bench_process_cpu_ns(opt.pid), own = bench_process_cpu_ns((int)getpid());
    mono_ns start = clock_mono();
    run_for(opt.seconds);
    double took = (double)(clock_mono() - start) / 1e9;
    messages = messages_done - messages;
    cpu = bench_process_cpu_ns(opt.pid) - cpu;
    own = bench_process_cpu_ns((int)getpid()) - own;
    printf("qos=%d batch=%d payload=%d connections=%d messages=%lu rate=%.0f server_us_per_message=%.3f server_cpu=%.2f load_cpu=%.2f",
           opt.qos, opt.batch, opt.payload, opt.connections, messages, (double)messages / took, (double)cpu / 1e3 / (double)messages,
           (double)cpu / 1e9 / took, (double)own / 1e9 / took);
    if (opt.qos)
        printf(" ack_p50_us=%.0f ack_p99_us=%.0f ack_max_us=%.0f", (double)histogram_quantile(&ack_latency, 0.5) / 1e3,
               (double)histogram_quantile(&ack_latency, 0.99) / 1e3, (double)histogram_max(&ack_latency) / 1e3);
    printf(" all_messages=%lu anon_mib=%.1f\n", warm_up + messages, (double)bench_process_anonymous(opt.pid) / 1048576);
    return 0;
}

static int idle(void)
{
    open_links(0, opt.from);
    usleep(500000);
    uint64_t before = bench_process_anonymous(opt.pid);
    open_links(opt.from, opt.to);
    usleep(1000000);
    uint64_t after = bench_process_anonymous(opt.pid), cpu = bench_process_cpu_ns(opt.pid);
    usleep(2000000);
    cpu = bench_process_cpu_ns(opt.pid) - cpu;
    printf("connections=%d..%d filter=%s anon_before=%lu anon_after=%lu bytes_per_connection=%.0f idle_cpu_percent=%.2f\n", opt.from,
           opt.to, opt.filter ? "yes" : "no", before, after, ((double)after - (double)before) / (opt.to - opt.from),
           (double)cpu / 2e9 * 100);
    return 0;
}

int main(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"port", .number = &opt.port},
        {"pid", .number = &opt.pid},
        {"qos", .number = &opt.qos},
        {"connections", .number = &opt.connections},
        {"batch", .number = &opt.batch},
        {"payload", .number = &opt.payload},
        {"seconds", .real = &opt.seconds},
        {"rate", .real = &opt.rate},
        {"topic", .text = &opt.topic},
        {"from", .number = &opt.from},
        {"to", .number = &opt.to},
        {"filter", .text = &opt.filter},
        {0},
    };
    bench_options_parse(argc, argv, options);
    const char *what = optind < argc ? argv[optind] : "";
    if (opt.port == 0 || opt.connections > CONNECTIONS_MAX || opt.to > CONNECTIONS_MAX || opt.batch < 1 || opt.payload > PACKET_MAX) {
        fprintf(stderr, "usage: load publish|latency|idle --port P [--pid SERVER] ... (see the head of load.c)\n");
        return 2;
    }
    histogram_init(&ack_latency);
    if (!strcmp(what, "publish"))
        return publish();
    if (!strcmp(what, "latency")) {
        opt.connections = opt.batch = 1;
        opt.qos = 1;
        return publish();
    }
    if (!strcmp(what, "idle"))
        return idle();
    fprintf(stderr, "load: publish, latency or idle?\n");
    return 2;
}
