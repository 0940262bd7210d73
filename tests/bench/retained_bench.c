/* Memory and speed of the index of retained topics.
 *
 *     retained_bench [-n TOPICS]
 *
 * Topics `fleet/ID/status/NAME`, in random order. Prints anonymous memory per topic, without the topic itself: of values on disk, and of
 * values in memory until the checkpoint has them (their messages are one and the same here and cost nothing); then nanoseconds of a
 * restore, a put, a find, a step of a scan of everything, and of letting a message go. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "broker/route/retained.h"
#include "common/check.h"
#include "tests/bench/bench_util.h"

static void ref(void *msg) { (void)msg; }
static void unref(void *msg) { (void)msg; }
static uint64_t sequence(const void *msg) { return *(const uint64_t *)msg; }

static double now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* The i-th of `count` topics in a fixed random order. */
static struct span topic_at(char text[64], uint64_t i, uint64_t count)
{
    uint64_t id = i * UINT64_C(2654435761) % count;
    return span_of(text, (size_t)snprintf(text, 64, "fleet/device-%08lu/status/main", (unsigned long)id));
}

static bool visit(void *arg, const struct retained_value *value)
{
    *(uint64_t *)arg += value->number > 0;
    return true;
}

/* Fill a store with values on disk, or in memory, and print what one costs. */
static struct retained *fill(uint64_t count, bool on_disk, uint64_t *msg)
{
    const struct retained_limits limits = {.messages_max = count, .bytes_max = UINT64_MAX};
    const struct retained_reservation nothing = {0};
    const struct retained_callbacks callbacks = {.ref = ref, .unref = unref, .sequence = sequence};
    char text[64];
    uint64_t before = bench_process_anonymous(getpid());
    double begin = now_ns();
    struct retained *store = retained_new(1, &limits, &callbacks, NULL);
    CHECK(store);
    for (uint64_t i = 0; i < count; i++) {
        struct span topic = topic_at(text, i, count);
        enum retained_result result = on_disk ? retained_restore(store, topic, i + 1, i + 1, 200, RETAINED_NO_EXPIRY)
                                              : retained_put(store, topic, i + 1, msg, 200, RETAINED_NO_EXPIRY, &nothing);
        CHECK(result == RETAINED_STORED);
    }
    double spent = now_ns() - begin;
    double bytes = (double)(bench_process_anonymous(getpid()) - before) / (double)count;
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    double topic_size = (double)topic_at(text, 0, count).size;
    printf("%-10s %6.1f B and the topic (%.0f B) each, %6.1f as asked from malloc; %5.0f ns to enter one\n",
           on_disk ? "on disk" : "in memory", bytes - topic_size, topic_size, (double)stats.index_bytes / (double)count - topic_size,
           spent / (double)count);
    return store;
}

static void measure_disk(uint64_t count)
{
    char text[64];
    uint64_t seen = 0;
    struct retained *store = fill(count, true, NULL);
    double begin = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        struct retained_value value;
        CHECK(retained_find(store, &value, topic_at(text, i, count), 0));
        CHECK(value.sequence == i + 1);
    }
    double found = now_ns();
    struct retained_scan *scan = retained_scan_begin(store, SPAN_LITERAL("fleet/+/status/#"));
    CHECK(scan);
    while (retained_scan_step(scan, 0, 256, visit, &seen)) {
    }
    retained_scan_end(scan);
    CHECK(seen == count);
    printf("           find %.0f ns, scan %.0f ns a topic\n", (found - begin) / (double)count, (now_ns() - found) / (double)count);
    retained_free(store);
}

static void measure_memory(uint64_t count)
{
    uint64_t msg = 1;
    struct retained *store = fill(count, false, &msg);
    retained_on_checkpoint(store, 2);
    double begin = now_ns();
    while (retained_let_go(store, 1024)) {
    }
    printf("           let go %.0f ns a message\n", (now_ns() - begin) / (double)count);
    retained_free(store);
}

int main(int argc, char **argv)
{
    uint64_t count = argc == 3 && strcmp(argv[1], "-n") == 0 ? strtoull(argv[2], NULL, 10) : 1000003; /* a prime: no topic twice */
    pid_t child = fork(); /* each measures memory that nothing was freed in before */
    CHECK(child >= 0);
    if (child == 0) {
        measure_disk(count);
        return 0;
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    measure_memory(count);
    return 0;
}
