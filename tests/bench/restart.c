/* A start with very many sessions or retained topics: how long until it serves, what one of them costs, and how soon a client that returns
 * has what waited for it. Real objects, no sockets but those of the few that return.
 *
 *   restart fill  DATA --sessions N [--messages 10] [--shared] [--wildcard] [--retained N]
 *        Writes the log of a broker that made N sessions (24-byte client id, one 30-byte filter, away for good) and took the messages for
 * them, QoS 1, 100 bytes; then brings the checkpoint up to it, as a start does. Each session has messages of its own; with --shared a
 * thousand sessions share each; --wildcard: each filter is `fleet/ID/.../+`, not a topic. --retained: so many topics of 30 bytes have a
 * retained value of 100.
 *   restart connect DATA --sessions N
 *        To the log that fill wrote: all of them connect, and each tenth leaves a will. Then nothing, as if killed: the checkpoint does not
 * know it, and the next start finds all connected.
 *   restart load  DATA
 *        The load of a start alone, in this process: time, and anonymous memory by what it is for.
 *   restart serve DATA --sessions N [--messages 10] --broker PROGRAM --config FILE [--returning 200] [--settle 3] [--cold] [--then COMMAND]
 *        Starts the program (whose configuration names DATA) and measures it from outside: until it says where it listens; its anonymous
 * memory then, after it has served for --settle seconds, and after the returns; and, for clients picked all over, from connect() to the
 * last of the messages. --cold: nothing of DATA is in the page cache before. --then: runs that in a shell, with $PORT, $HTTP (0 without)
 * and $PID. Stops the program.
 *
 * Output: lines of `key=value`. DATA is removed by whoever made it. */
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "broker/core/request.h"
#include "broker/core/shard.h"
#include "broker/core/shard_restore.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/ops/recovery.h"
#include "broker/route/retained.h"
#include "broker/route/route_actor.h"
#include "broker/route/topic_tree.h"
#include "broker/session/session.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/histogram.h"
#include "common/proc.h"
#include "tests/bench/bench_mqtt.h"
#include "tests/bench/bench_options.h"
#include "tests/bench/bench_util.h"

#define BLOCKS 64 /* of one write */
#define SHARE 1000
#define SETTLE_S 3 /* before the anonymous memory is read: a few commits and rounds of every thread */
#define WILL_SHARE 10
#define FIRST_EPOCH 1 /* of a new log: part of the sessions' numbers */
#define KEY 0x5eed

struct options {
    const char *data, *broker, *config, *then;
    uint64_t sessions, retained;
    int messages, returning, settle;
    bool is_shared, is_wildcard, is_cold;
};

static struct options opt = {.messages = 10, .returning = 200, .settle = SETTLE_S};

static void check(enum err err, const struct errmsg *msg)
{
    if (err == ERR_OK)
        return;
    fprintf(stderr, "restart: %s: %s\n", err_text(err), msg ? msg->text : "");
    exit(1);
}

static double seconds_since(mono_ns begun) { return (double)(clock_mono() - begun) / 1e9; }

/* --- names ---------------------------------------------------------------------------------------------------------------------------- */

static struct span client_id_of(char text[32], uint64_t i)
{
    return span_of(text, (size_t)snprintf(text, 32, "device-%017lu", (unsigned long)i));
}

/* 30 bytes. */
static struct span filter_of(char text[40], uint64_t i)
{
    return span_of(
        text, (size_t)snprintf(text, 40, opt.is_wildcard ? "fleet/%09lu/commands/set/+" : "fleet/%09lu/commands/a/set", (unsigned long)i));
}

static struct span topic_of(char text[40], uint64_t i)
{
    return span_of(
        text, (size_t)snprintf(text, 40, opt.is_wildcard ? "fleet/%09lu/commands/set/a" : "fleet/%09lu/commands/a/set", (unsigned long)i));
}

static uint64_t number_of(uint32_t epoch, uint64_t i) { return session_number_of(epoch, i + 1); }

/* --- fill ------------------------------------------------------------------------------------------------------------------------------
 */

struct filler {
    struct log_writer *writer;
    struct log_block_pool pool;
    struct log_block *block;
    struct log_block *sealed[BLOCKS];
    size_t sealed_count;
    uint64_t records;
};

static void write_sealed(struct filler *filler)
{
    struct errmsg msg = {{0}};
    if (filler->sealed_count == 0)
        return;
    log_writer_begin(filler->writer, filler->sealed, filler->sealed_count);
    check(log_writer_write(filler->writer, &msg), &msg);
    check(log_writer_finish(filler->writer, clock_mono()), NULL);
    for (size_t i = 0; i < filler->sealed_count; i++)
        log_block_pool_put(&filler->pool, filler->sealed[i]);
    filler->sealed_count = 0;
}

static void seal(struct filler *filler)
{
    if (!filler->block)
        return;
    log_block_seal(&filler->pool, filler->block);
    filler->sealed[filler->sealed_count++] = filler->block;
    filler->block = NULL;
    if (filler->sealed_count == BLOCKS)
        write_sealed(filler);
}

static void put(struct filler *filler, const struct record *rec)
{
    for (;;) {
        if (!filler->block)
            filler->block = log_block_pool_get(&filler->pool);
        CHECK(filler->block);
        enum err err = log_block_append(filler->block, rec);
        if (err == ERR_OK)
            break;
        CHECK(err == ERR_FULL);
        seal(filler);
    }
    filler->records++;
}

/* flags: of the record's options, beside what all sessions have. */
static void put_session(struct filler *filler, uint32_t epoch, uint64_t i, uint64_t flags, int64_t now_wall_ns)
{
    char id[32];
    struct record session = {
        .type = RECORD_SESSION,
        .session = number_of(epoch, i),
        .client_id = client_id_of(id, i),
        .received_ns = now_wall_ns,
        .options = SESSION_NEVER_EXPIRES | flags | UINT64_C(4) << RECORD_SESSION_PROTOCOL_SHIFT,
    };
    put(filler, &session);
}

static void put_sessions(struct filler *filler, uint32_t epoch, int64_t now_wall_ns)
{
    char filter[40];
    for (uint64_t i = 0; i < opt.sessions; i++) {
        put_session(filler, epoch, i, 0, now_wall_ns);
        struct record subscription = {
            .type = RECORD_SUBSCRIPTION, .session = number_of(epoch, i), .topic = filter_of(filter, i), .options = 1};
        put(filler, &subscription);
    }
}

/* Message by message over all sessions, so that two messages of a session are far apart in the log, as they are when devices are away. */
static void put_messages(struct filler *filler, uint32_t epoch, int64_t now_wall_ns)
{
    static uint8_t recipients[SHARE * RECORD_RECIPIENT_SIZE_MAX];
    char topic[40], payload[200];
    uint64_t step = opt.is_shared ? SHARE : 1;
    for (int k = 0; k < opt.messages; k++) {
        for (uint64_t i = 0; i < opt.sessions; i += step) {
            bench_make_payload(payload, 100, (int)(i % 1000));
            size_t size = 0;
            for (uint64_t j = i; j < i + step && j < opt.sessions; j++)
                size += record_recipient_put(recipients + size, &(struct record_recipient){.session = number_of(epoch, j), .qos = 1});
            struct record rec = {
                .type = RECORD_PUBLISH,
                .qos = 1,
                .topic = topic_of(topic, i),
                .payload = span_of_string(payload),
                .received_ns = ++now_wall_ns,
                .client_id = SPAN_LITERAL("backend"),
                .recipients = span_of(recipients, size),
            };
            put(filler, &rec);
        }
    }
}

static void put_retained(struct filler *filler, int64_t now_wall_ns)
{
    char topic[40], payload[200];
    for (uint64_t i = 0; i < opt.retained; i++) {
        bench_make_payload(payload, 100, (int)(i % 1000));
        struct record rec = {
            .type = RECORD_PUBLISH,
            .qos = 1,
            .retain = true,
            .retained_number = i + 1,
            .topic = topic_of(topic, i),
            .payload = span_of_string(payload),
            .received_ns = ++now_wall_ns,
            .client_id = SPAN_LITERAL("backend"),
        };
        put(filler, &rec);
    }
}

static void put_connected(struct filler *filler, uint32_t epoch, int64_t now_wall_ns)
{
    char id[32], topic[40];
    for (uint64_t i = 0; i < opt.sessions; i++) {
        put_session(filler, epoch, i, RECORD_SESSION_CONNECTED, now_wall_ns);
        if (i % WILL_SHARE != 0)
            continue;
        struct record will = {
            .type = RECORD_WILL,
            .session = number_of(epoch, i),
            .qos = 1,
            .topic = span_of(topic, (size_t)snprintf(topic, sizeof topic, "fleet/%09lu/will", (unsigned long)i)),
            .payload = SPAN_LITERAL("gone"),
            .client_id = client_id_of(id, i),
        };
        put(filler, &will);
    }
}

static enum err open_kv(void *arg, struct kv **kv_out, struct errmsg *msg)
{
    char dir[FILE_PATH_MAX];
    (void)arg;
    check(file_path(dir, opt.data, "checkpoint"), NULL);
    struct kv_lmdb_options options = {.dir = dir, .map_bytes = UINT64_C(1) << 40, .reader_max = 16};
    return kv_lmdb_open(kv_out, &options, msg);
}

static struct log_writer_options log_options(char dir_out[FILE_PATH_MAX])
{
    check(file_path(dir_out, opt.data, "log"), NULL);
    return (struct log_writer_options){.fs = fs_posix(), .dir = dir_out, .log_bytes_max = UINT64_C(1) << 38, .wall_ns = clock_wall()};
}

static void open_durable(struct durable *durable)
{
    char dir[FILE_PATH_MAX];
    struct errmsg msg = {{0}};
    struct recovery_options options = {
        .fs = fs_posix(), .data_dir = opt.data, .open_kv = open_kv, .log = log_options(dir), .delta_bytes_max = 256u << 20, .random = KEY};
    check(recovery_open(durable, &options, &msg), &msg);
}

static void filler_begin(struct filler *filler, struct log_writer *writer)
{
    *filler = (struct filler){.writer = writer};
    check(log_block_pool_init(&filler->pool, 0, BLOCKS + 1, LOG_BLOCK_BODY_MAX, log_writer_alignment(writer)), NULL);
}

static void filler_end(struct filler *filler)
{
    seal(filler);
    write_sealed(filler);
    log_block_pool_deinit(&filler->pool);
}

static void fill(void)
{
    char dir[FILE_PATH_MAX];
    struct errmsg msg = {{0}};
    struct log_writer *writer;
    struct filler filler;
    struct log_writer_options options = log_options(dir);
    mono_ns begun = clock_mono();
    check(log_writer_open(&writer, &options, NULL, &msg), &msg);
    filler_begin(&filler, writer);
    CHECK(log_writer_epoch(writer) == FIRST_EPOCH);
    put_sessions(&filler, FIRST_EPOCH, options.wall_ns);
    put_messages(&filler, FIRST_EPOCH, options.wall_ns);
    put_retained(&filler, options.wall_ns);
    filler_end(&filler);
    struct log_writer_stats stats;
    log_writer_stats(writer, &stats);
    log_writer_close(writer);
    double written = seconds_since(begun);
    struct durable durable;
    begun = clock_mono();
    open_durable(&durable);
    double replayed = seconds_since(begun);
    recovery_close(&durable);
    printf("sessions=%lu messages=%d retained=%lu records=%lu log_mib=%.0f write_s=%.1f replay_s=%.1f replay_records_per_s=%.0f\n",
           (unsigned long)opt.sessions, opt.messages, (unsigned long)opt.retained, (unsigned long)filler.records,
           (double)stats.byte_count / 1048576, written, replayed, (double)filler.records / replayed);
}

static void connect_all(void)
{
    struct durable durable;
    struct filler filler;
    struct log_writer_stats before, after;
    open_durable(&durable);
    log_writer_stats(durable.writer, &before);
    filler_begin(&filler, durable.writer);
    put_connected(&filler, FIRST_EPOCH, clock_wall());
    filler_end(&filler);
    log_writer_stats(durable.writer, &after);
    recovery_close(&durable);
    printf("sessions=%lu records=%lu log_mib=%.0f\n", (unsigned long)opt.sessions, (unsigned long)filler.records,
           (double)(after.byte_count - before.byte_count) / 1048576);
}

/* --- load ------------------------------------------------------------------------------------------------------------------------------
 */

/* The allocator's own count of this thread, size classes included; not there with another allocator. */
extern int mallctl(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size) __attribute__((weak));

static const uint64_t *allocator_count(const char *name)
{
    static const uint64_t zero;
    const uint64_t *at = NULL;
    size_t size = sizeof at;
    return mallctl && mallctl(name, &at, &size, NULL, 0) == 0 ? at : &zero;
}

/* What a part of the load takes. */
struct part {
    int64_t bytes;
    mono_ns time;
};

struct loader {
    struct shard *shard;
    struct topic_tree *tree;
    struct part session, tree_part, wants, all;
    uint64_t sessions, messages;
    const uint64_t *allocated, *freed;
};

static struct part measure(const struct loader *loader)
{
    return (struct part){.bytes = (int64_t)(*loader->allocated - *loader->freed), .time = clock_mono()};
}

static void account(struct part *part, const struct part *from, const struct loader *loader)
{
    struct part now = measure(loader);
    part->bytes += now.bytes - from->bytes;
    part->time += now.time - from->time;
}

static enum err on_session(void *arg, const struct checkpoint_session *session)
{
    struct loader *loader = arg;
    struct part begun = measure(loader);
    enum err err = shard_restore_session(loader->shard, session);
    account(&loader->session, &begun, loader);
    struct span rest = session->subscriptions, bytes;
    begun = measure(loader);
    while (!err && record_next(&bytes, &rest) == ERR_OK) {
        struct record rec;
        struct subscriber subscriber;
        err = record_decode(&rec, bytes);
        if (!err) {
            subscriber = request_subscriber(session->number, 0, rec.options);
            err = topic_tree_add(loader->tree, NULL, rec.topic, &subscriber);
        }
    }
    account(&loader->tree_part, &begun, loader);
    begun = measure(loader);
    shard_restore_filters_done(loader->shard, session->number);
    account(&loader->session, &begun, loader);
    loader->sessions++;
    return err;
}

static enum err on_runs(void *arg, uint64_t session, uint64_t last_sequence)
{
    (void)arg, (void)session, (void)last_sequence;
    return ERR_OK;
}

static enum err on_want(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct loader *loader = arg;
    struct part begun = measure(loader);
    enum err err = shard_restore_want(loader->shard, session, sequence, want->qos, cost, is_in_run, 0);
    account(&loader->wants, &begun, loader);
    loader->messages++;
    return err;
}

static void on_want_soon(void *arg, uint64_t session, int step)
{
    struct loader *loader = arg;
    shard_restore_want_soon(loader->shard, session, step);
}

static enum err on_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    (void)arg, (void)topic, (void)number, (void)sequence, (void)cost, (void)expiry;
    return ERR_OK;
}

static void on_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg, (void)key;
    fprintf(stderr, "restart: a damaged value in %s\n", kv_tree_name(tree));
    exit(1);
}

/* What a shard does with the outside while nothing is sent: nothing. */
static ssize_t io_write(void *io, void *conn, const struct iovec *iov, int iov_count)
{
    (void)io, (void)conn, (void)iov, (void)iov_count;
    return -1;
}
static void io_pause(void *io, void *conn, bool paused) { (void)io, (void)conn, (void)paused; }
static void io_close(void *io, void *conn, uint32_t linger_ms) { (void)io, (void)conn, (void)linger_ms; }
static bool io_post(void *io, actor_id to, const struct op *op, bool reserve)
{
    (void)io, (void)to, (void)op, (void)reserve;
    return false;
}
static uint64_t io_random(void *io) { return (uint64_t)(uintptr_t)io + KEY; }

static struct shard *make_shard(struct topic_tree *tree, struct log_block_pool *pool, uint32_t epoch)
{
    static const struct shard_io io = {.write = io_write, .read_pause = io_pause, .close = io_close, .post = io_post, .random = io_random};
    static const struct shard_listener listener = {.allow_anonymous = true, .max_packet_size = 1u << 20, .receive_maximum = 100};
    static _Atomic uint64_t retained_counter;
    struct retained_limits retained_limits = {.messages_max = UINT64_MAX, .bytes_max = UINT64_MAX};
    struct retained_callbacks retained_callbacks = {0};
    struct shard_config config = {
        .shard_count = 1,
        .hash_key = KEY,
        .limits =
            {
                .session_queue_messages_max = 100000,
                .session_queue_bytes_max = UINT64_MAX,
                .inflight_max = 20,
                .outbox_bytes_max = 1u << 20,
                .outboxes_bytes_max = 1u << 26,
                .partial_bytes_max = 1u << 26,
                .connect_timeout_ms = 10000,
                .session_expiry_max_s = UINT32_MAX,
                .sessions_max = UINT32_MAX,
                .record_bytes_max = RECORD_SIZE_MAX,
                .publishes_per_turn_max = 64,
            },
        .listeners = &listener,
        .listener_count = 1,
        .retained_counter = &retained_counter,
        .retained = retained_new(KEY, &retained_limits, &retained_callbacks, topic_tree_epoch(tree)),
        .epoch = epoch,
        .persistence = true,
    };
    struct shard *shard = shard_new(&config, tree, pool, &io, NULL);
    CHECK(shard);
    return shard;
}

static void print_part(const char *name, const struct part *part, const struct loader *loader)
{
    printf("  %-44s %8.1f B %8.2f s\n", name, (double)part->bytes / (double)loader->sessions, (double)part->time / 1e9);
}

static void load(void)
{
    struct durable durable;
    struct errmsg msg = {{0}};
    struct log_block_pool pool;
    mono_ns begun = clock_mono();
    open_durable(&durable);
    double opened = seconds_since(begun);
    check(log_block_pool_init(&pool, 0, 16, LOG_BLOCK_BODY_MAX, log_writer_alignment(durable.writer)), NULL);
    struct loader loader = {.tree = topic_tree_new(KEY)};
    CHECK(loader.tree);
    loader.shard = make_shard(loader.tree, &pool, log_writer_epoch(durable.writer));
    loader.allocated = allocator_count("thread.allocatedp");
    loader.freed = allocator_count("thread.deallocatedp");
    struct checkpoint_loader callbacks = {.on_session = on_session,
                                          .on_runs = on_runs,
                                          .on_want = on_want,
                                          .on_retained = on_retained,
                                          .on_corrupt = on_corrupt,
                                          .arg = &loader,
                                          .on_want_soon = on_want_soon};
    uint64_t anonymous = bench_process_anonymous((int)getpid());
    struct part from = measure(&loader);
    shard_turn_begin(loader.shard, clock_mono(), clock_wall());
    check(checkpoint_load(durable.checkpoint, &callbacks, &msg), &msg);
    double took = seconds_since(from.time);
    shard_turn_end(loader.shard);
    struct part polled = measure(&loader);
    for (int i = 0; i < 8 && topic_tree_poll(loader.tree); i++) { /* what it replaced while it grew; the turn was its reader */
    }
    account(&loader.tree_part, &polled, &loader);
    account(&loader.all, &from, &loader);
    proc_trim_memory();
    anonymous = bench_process_anonymous((int)getpid()) - anonymous;
    printf("sessions=%lu messages=%lu open_s=%.2f load_s=%.2f anonymous_per_session=%.0f\n", (unsigned long)loader.sessions,
           (unsigned long)loader.messages, opened, took, (double)anonymous / (double)loader.sessions);
    print_part("session, tables, timer", &loader.session, &loader);
    print_part("topic tree", &loader.tree_part, &loader);
    print_part("queue: body and list of sequences", &loader.wants, &loader);
    struct part rest = {.bytes = loader.all.bytes - loader.session.bytes - loader.tree_part.bytes - loader.wants.bytes,
                        .time = loader.all.time - loader.session.time - loader.tree_part.time - loader.wants.time};
    print_part("reading the checkpoint", &rest, &loader);
    fflush(stdout);
    _exit(0); /* the kernel is quicker than a million free() */
}

/* --- serve -----------------------------------------------------------------------------------------------------------------------------
 */

static pid_t start_broker(void)
{
    pid_t pid = fork();
    if (pid < 0)
        bench_die("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* whatever happens to us, it does not stay */
        char log[FILE_PATH_MAX];
        int fd = file_path(log, opt.data, "broker.out") == ERR_OK ? open(log, O_CREAT | O_TRUNC | O_WRONLY, 0600) : -1;
        if (fd >= 0) {
            dup2(fd, 1);
            dup2(fd, 2);
        }
        execl(opt.broker, opt.broker, "-c", opt.config, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* The port of `tcp` or `http` in the file that says where it listens; 0: not there. */
static int listener_port(const char *path, const char *kind)
{
    char line[200], word[16];
    int port, found = 0;
    FILE *file = fopen(path, "r");
    while (file && found == 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "%15s %*s %d", word, &port) == 2 && !strcmp(word, kind))
            found = port;
    if (file)
        fclose(file);
    return found;
}

/* Where it listens, once it says so. */
static int await_port(pid_t pid, const char *path)
{
    int port;
    while ((port = listener_port(path, "tcp")) == 0) {
        if (waitpid(pid, NULL, WNOHANG) != 0) {
            fprintf(stderr, "restart: the broker ended; see %s/broker.out\n", opt.data);
            exit(1);
        }
        usleep(2000);
    }
    return port;
}

static uint64_t cached_bytes;

/* What the page cache has of the file goes to the disk and is forgotten; counts what is there all the same. */
static int forget_file(const char *path, const struct stat *stat, int type, struct FTW *at)
{
    (void)at;
    int fd = type == FTW_F && stat->st_size > 0 ? open(path, O_RDONLY) : -1;
    if (fd < 0)
        return 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)stat->st_size, count = (size + page - 1) / page;
    if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        bench_die(path);
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    unsigned char *is_cached = calloc(count, 1);
    if (map == MAP_FAILED || !is_cached || mincore(map, size, is_cached))
        bench_die(path);
    for (size_t i = 0; i < count; i++)
        cached_bytes += is_cached[i] & 1 ? page : 0;
    free(is_cached);
    munmap(map, size);
    close(fd);
    return 0;
}

static void forget_cached(void)
{
    if (nftw(opt.data, forget_file, 8, FTW_PHYS))
        bench_die("nftw");
}

static void run_then(pid_t pid, int port, const char *listeners)
{
    char text[32];
    snprintf(text, sizeof text, "%d", port);
    setenv("PORT", text, 1);
    snprintf(text, sizeof text, "%d", listener_port(listeners, "http"));
    setenv("HTTP", text, 1);
    snprintf(text, sizeof text, "%d", (int)pid);
    setenv("PID", text, 1);
    fflush(stdout);
    if (system(opt.then) != 0)
        bench_die("what was to be run then");
}

static void read_packet(int fd, uint8_t *packet, size_t room)
{
    size_t size = 0;
    while (bench_packet_size(packet, size) == 0) {
        if (size == room)
            bench_die("a packet that is too large");
        bench_read_exact(fd, packet + size, 1);
        size++;
    }
}

/* Connect as a client that was away and take what waits; returns how long that took. */
static mono_ns return_client(int port, uint64_t i)
{
    char id[32];
    uint8_t packet[1000];
    bool is_resumed = false;
    client_id_of(id, i);
    mono_ns begun = clock_mono();
    int fd = bench_connect(port, id, false, &is_resumed);
    if (!is_resumed)
        bench_die("a session is lost");
    for (int k = 0; k < opt.messages; k++) {
        read_packet(fd, packet, sizeof packet);
        const uint8_t *topic = packet + 1;
        while (*topic++ & 0x80) {
        }
        const uint8_t *packet_id = topic + 2 + (topic[0] << 8 | topic[1]);
        if ((packet[0] & 0xf0) != 0x30)
            bench_die("not a PUBLISH");
        bench_send(fd, (uint8_t[]){0x40, 2, packet_id[0], packet_id[1]}, 4);
    }
    mono_ns took = clock_mono() - begun;
    bench_send(fd, (uint8_t[]){0xe0, 0}, 2);
    close(fd);
    return took;
}

/* Clients all over return, one after the other. */
static void return_clients(int port, mono_ns begun)
{
    static struct histogram took;
    histogram_init(&took);
    /* Others at each run: who has returned has nothing waiting any more. */
    uint64_t stride = opt.sessions / (uint64_t)(opt.returning + 1), from = (uint64_t)begun / 1000 % stride;
    mono_ns first_took = return_client(port, from);
    for (int i = 1; i <= opt.returning; i++)
        histogram_record(&took, (uint64_t)return_client(port, (uint64_t)i * stride + from));
    printf("first_return_ms=%.1f return_p50_ms=%.2f return_p99_ms=%.2f return_max_ms=%.2f ", (double)first_took / 1e6,
           (double)histogram_quantile(&took, 0.5) / 1e6, (double)histogram_quantile(&took, 0.99) / 1e6, (double)histogram_max(&took) / 1e6);
}

static void serve(void)
{
    char path[FILE_PATH_MAX];
    check(file_path(path, opt.data, "listeners"), NULL);
    unlink(path);
    if (opt.is_cold)
        forget_cached();
    mono_ns begun = clock_mono();
    pid_t pid = start_broker();
    int port = await_port(pid, path);
    double serving = seconds_since(begun);
    uint64_t first = bench_process_anonymous(pid), cpu = bench_process_cpu_ns(pid);
    sleep((unsigned)opt.settle);
    printf("sessions=%lu serving_s=%.2f start_cpu_s=%.2f anonymous_at_start=%lu anonymous=%lu ", (unsigned long)opt.sessions, serving,
           (double)cpu / 1e9, (unsigned long)first, (unsigned long)bench_process_anonymous(pid));
    if (opt.is_cold)
        printf("cached_before_mib=%.1f ", (double)cached_bytes / 1048576);
    if (opt.returning > 0)
        return_clients(port, begun);
    sleep((unsigned)
              opt.settle); /* of what the returned cost, the most is the database's room for the pages of a commit: not of any session */
    printf("anonymous_after_returns=%lu\n", (unsigned long)bench_process_anonymous(pid));
    if (opt.then)
        run_then(pid, port, path);
    begun = clock_mono();
    kill(pid, SIGTERM);
    int status = 0;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fprintf(stderr, "restart: the broker did not stop cleanly; see %s/broker.out\n", opt.data);
    fprintf(stderr, "restart: stopped after %.2f s\n", seconds_since(begun));
}

/* --- the command line ------------------------------------------------------------------------------------------------------------------
 */

static void parse(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"sessions", .count = &opt.sessions}, {"messages", .number = &opt.messages},
        {"shared", .flag = &opt.is_shared},   {"wildcard", .flag = &opt.is_wildcard},
        {"retained", .count = &opt.retained}, {"broker", .text = &opt.broker},
        {"config", .text = &opt.config},      {"returning", .number = &opt.returning},
        {"settle", .number = &opt.settle},    {"cold", .flag = &opt.is_cold},
        {"then", .text = &opt.then},          {0},
    };
    bench_options_parse(argc, argv, options);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    const char *what = optind < argc ? argv[optind++] : "";
    opt.data = optind < argc ? argv[optind] : NULL;
    bool can_return = opt.returning == 0 || opt.sessions > (uint64_t)opt.returning;
    if (opt.data && !strcmp(what, "fill") && opt.sessions + opt.retained > 0)
        fill();
    else if (opt.data && !strcmp(what, "connect") && opt.sessions > 0)
        connect_all();
    else if (opt.data && !strcmp(what, "load"))
        load();
    else if (opt.data && !strcmp(what, "serve") && can_return && opt.broker && opt.config && opt.returning >= 0 && opt.settle >= 0)
        serve();
    else {
        fprintf(stderr, "usage: restart fill|connect|load|serve DATA ... (see the head of restart.c)\n");
        return 2;
    }
    return 0;
}
