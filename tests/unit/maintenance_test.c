/* backup.c, restore.c and repair.c on real directories with a log and a checkpoint, as a broker leaves them; what the clients see of it is
 * tests/scenario/test_maintenance.py's. */
#include "broker/ops/backup.h"
#include "broker/ops/checkpoint_look.h"
#include "broker/ops/data_files.h"
#include "broker/ops/repair.h"
#include "broker/ops/restore.h"

#include "broker/durable/data_format.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/durable/kv_snapshot.h"
#include "broker/durable/store_writer.h"
#include "common/log_segment.h"
#include "common/log_writer.h"

#include <ftw.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SEGMENT_SIZE ((uint64_t)64 << 10)
#define MAP_BYTES ((uint64_t)64 << 20)
#define OK(call) assert_int_equal((call), ERR_OK)

struct place {
    char root[96], data[128], log[160], checkpoint[160], backup[128], restored[128];
    struct kv *kv;
    struct checkpoint *checkpoint_open;
    struct log_writer *writer;
    struct log_block_pool pool;
    struct errmsg msg;
    char *told; /* what the last command printed */
    size_t told_size;
};

static void use(struct place *p, const char *data)
{
    snprintf(p->data, sizeof p->data, "%s/%s", p->root, data);
    snprintf(p->log, sizeof p->log, "%s/log", p->data);
    snprintf(p->checkpoint, sizeof p->checkpoint, "%s/checkpoint", p->data);
}

static int setup(void **state)
{
    struct place *p = (struct place *)calloc(1, sizeof *p);
    const char *tmp = getenv("TMPDIR");
    snprintf(p->root, sizeof p->root, "%s/maintenance_test.XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(p->root));
    use(p, "data");
    snprintf(p->backup, sizeof p->backup, "%s/backup", p->root);
    assert_int_equal(mkdir(p->data, 0750), 0);
    *state = p;
    return 0;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *ftw)
{
    (void)status, (void)kind, (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    struct place *p = (struct place *)*state;
    (void)nftw(p->root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(p->told);
    free(p);
    return 0;
}

/* ---- what a broker does ---- */

/* As a start does: checkpoint, log, replay. */
static enum err start(struct place *p)
{
    struct kv_lmdb_options kv = {.dir = p->checkpoint, .map_bytes = MAP_BYTES};
    OK(kv_lmdb_open(&p->kv, &kv, &p->msg));
    OK(checkpoint_open(&p->checkpoint_open, p->kv, 1, &p->msg));
    struct log_cursor_value cursor = checkpoint_state(p->checkpoint_open).cursor;
    struct log_writer_options log = {.fs = fs_posix(),
                                     .dir = p->log,
                                     .segment_size = SEGMENT_SIZE,
                                     .log_bytes_max = 64 * SEGMENT_SIZE,
                                     .checkpoint = cursor.reopen,
                                     .checkpoint_end = cursor.place};
    enum err err = log_writer_open(&p->writer, &log, NULL, &p->msg);
    if (!err)
        err = store_writer_replay(p->checkpoint_open, fs_posix(), p->log, 0, &p->msg);
    if (!err)
        OK(data_format_write(fs_posix(), p->data, DATA_FORMAT_CHECKPOINT, &p->msg));
    if (p->writer)
        OK(log_block_pool_init(&p->pool, 0, 4, LOG_BLOCK_BODY_MAX, log_writer_alignment(p->writer)));
    return err;
}

static void stop(struct place *p)
{
    checkpoint_free(p->checkpoint_open);
    kv_close(p->kv);
    if (p->writer) {
        log_writer_close(p->writer);
        log_block_pool_deinit(&p->pool);
    }
    p->writer = NULL;
    p->kv = NULL;
    p->checkpoint_open = NULL;
}

static uint64_t put(struct place *p, const struct record *rec)
{
    struct log_block *block = log_block_pool_get(&p->pool);
    OK(log_block_append(block, rec));
    log_block_seal(&p->pool, block);
    log_writer_begin(p->writer, &block, 1);
    OK(log_writer_write(p->writer, &p->msg));
    OK(log_writer_finish(p->writer, INT64_MAX / 2));
    uint64_t sequence = block->first.sequence;
    log_block_pool_put(&p->pool, block);
    return sequence;
}

static void put_session(struct place *p, uint64_t number)
{
    char id[32];
    snprintf(id, sizeof id, "client-%" PRIu64, number);
    struct record rec = {.type = RECORD_SESSION,
                         .session = number,
                         .client_id = span_of_string(id),
                         .received_ns = 1,
                         .options = 3600 | (UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT)};
    put(p, &rec);
}

/* A message that sessions 1..count want. */
static uint64_t put_message(struct place *p, const char *payload, uint64_t count, uint64_t retained_number)
{
    uint8_t recipients[512];
    size_t size = 0;
    for (uint64_t session = 1; session <= count; session++) {
        struct record_recipient recipient = {.session = session, .qos = 1};
        size += record_recipient_put(recipients + size, &recipient);
    }
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 1,
                         .topic = span_of_string(payload),
                         .payload = span_of_string(payload),
                         .received_ns = 2,
                         .retain = retained_number > 0,
                         .retained_number = retained_number,
                         .recipients = span_of(recipients, size)};
    return put(p, &rec);
}

struct counts {
    uint64_t sessions, wants, retained, corrupt;
    bool exists[16]; /* by session number */
};

static enum err count_session(void *arg, const struct checkpoint_session *session)
{
    struct counts *counts = (struct counts *)arg;
    counts->sessions++;
    counts->exists[session->number] = true;
    return ERR_OK;
}
static enum err count_runs(void *arg, uint64_t session, uint64_t last)
{
    (void)arg, (void)session, (void)last;
    return ERR_OK;
}
static enum err count_want(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost,
                           bool is_in_run)
{
    (void)sequence, (void)want, (void)cost, (void)is_in_run;
    struct counts *counts = (struct counts *)arg;
    counts->wants += counts->exists[session];
    return counts->exists[session] ? ERR_OK : ERR_NOTFOUND;
}
static enum err count_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    (void)topic, (void)number, (void)sequence, (void)cost, (void)expiry;
    ((struct counts *)arg)->retained++;
    return ERR_OK;
}
static void count_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)tree, (void)key;
    ((struct counts *)arg)->corrupt++;
}

/* Start, look, stop. */
static struct counts look(struct place *p)
{
    struct counts counts = {0};
    struct checkpoint_loader loader = {count_session, count_runs, count_want, count_retained, count_corrupt, &counts, NULL};
    enum err err = start(p);
    if (err)
        print_message("%s\n", p->msg.text);
    OK(err);
    OK(checkpoint_load(p->checkpoint_open, &loader, &p->msg));
    stop(p);
    return counts;
}

static void expect(struct place *p, uint64_t sessions, uint64_t wants, uint64_t retained)
{
    struct counts counts = look(p);
    assert_int_equal(counts.corrupt, 0);
    assert_int_equal(counts.sessions, sessions);
    assert_int_equal(counts.wants, wants);
    assert_int_equal(counts.retained, retained);
}

/* So long that each has a row of the checkpoint to itself. */
static void put_long(struct place *p, const char *format, int number, uint64_t count, uint64_t retained_number)
{
    char payload[2500];
    memset(payload, '.', sizeof payload);
    payload[sizeof payload - 1] = 0;
    payload[snprintf(payload, 32, format, number)] = '.';
    put_message(p, payload, count, retained_number);
}

/* Three sessions, ten messages for each, five retained values. */
static void fill(struct place *p)
{
    OK(start(p));
    for (uint64_t session = 1; session <= 3; session++)
        put_session(p, session);
    for (int i = 0; i < 10; i++)
        put_long(p, "payload-%04d", i, 3, 0);
    for (int i = 1; i <= 5; i++)
        put_long(p, "retained-%04d", i, 0, (uint64_t)i);
    stop(p);
    expect(p, 3, 30, 5);
}

/* The commit before the newest holds all of it as well. */
static void fill_old(struct place *p)
{
    fill(p);
    for (int i = 0; i < 3; i++) {
        OK(start(p));
        put_message(p, "nobody's", 0, 0);
        stop(p);
    }
    expect(p, 3, 30, 5);
}

/* ---- commands ---- */

static enum err repair(struct place *p, bool yes, unsigned *found_out)
{
    free(p->told);
    FILE *out = open_memstream(&p->told, &p->told_size);
    struct repair_options options = {.data_dir = p->data, .checkpoint_bytes_max = MAP_BYTES, .yes = yes, .out = out};
    p->msg.text[0] = 0;
    enum err err = repair_run(&options, found_out, &p->msg);
    assert_int_equal(fclose(out), 0);
    if (err)
        print_message("%s\n%s\n", p->told, p->msg.text);
    return err;
}

/* Told, put right, and nothing left. */
static void repair_all(struct place *p, const char *words)
{
    unsigned found;
    OK(repair(p, false, &found));
    assert_true(found > 0);
    if (!strstr(p->told, words))
        fail_msg("\"%s\" is not in: %s", words, p->told);
    OK(repair(p, true, &found));
    assert_true(found > 0);
    OK(repair(p, false, &found));
    if (found)
        print_message("%s", p->told);
    assert_int_equal(found, 0);
}

static enum err backup(struct place *p)
{
    free(p->told);
    FILE *out = open_memstream(&p->told, &p->told_size);
    struct backup_options options = {.data_dir = p->data, .dir = p->backup, .out = out};
    enum err err = backup_run(&options, &p->msg);
    assert_int_equal(fclose(out), 0);
    return err;
}

static enum err restore(struct place *p)
{
    free(p->told);
    FILE *out = open_memstream(&p->told, &p->told_size);
    struct restore_options options = {.data_dir = p->data, .dir = p->backup, .out = out};
    enum err err = restore_run(&options, &p->msg);
    assert_int_equal(fclose(out), 0);
    return err;
}

/* Change every occurrence of a text in a file. */
static void spoil(const char *dir, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    size_t size = strlen(text), hits = 0;
    static char bytes[4 << 20];
    size_t got = fread(bytes, 1, sizeof bytes, file);
    for (size_t at = 0; at + size <= got; at++) {
        if (memcmp(bytes + at, text, size) != 0)
            continue;
        assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
        assert_int_equal(fputc('!', file), '!');
        hits++;
    }
    assert_int_equal(fclose(file), 0);
    assert_true(hits > 0);
}

static void remove_dir(const char *dir) { assert_int_equal(nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0); }

/* ---- tests ---- */

static void a_backup_is_restored_and_goes_on_under_its_own_id(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    OK(start(p)); /* it runs */
    OK(log_writer_ensure_cursor(p->writer, "sink", &p->msg));
    uint64_t old = log_writer_broker_id(p->writer);
    uint64_t last = put_message(p, "last", 3, 0); /* in the log alone */
    stop(p);
    OK(backup(p));
    assert_int_equal(backup(p), ERR_EXISTS);
    assert_int_equal(restore(p), ERR_EXISTS);
    use(p, "restored");
    OK(restore(p));
    struct log_cursor_value cursor;
    OK(log_cursor_read(&cursor, fs_posix(), p->log, "sink"));
    assert_true(cursor.broker_id != old);
    expect(p, 3, 33, 5);
    for (int i = 0; i < 3; i++) { /* without a record of its own, and with */
        OK(start(p));
        assert_true(log_writer_broker_id(p->writer) == cursor.broker_id);
        assert_true(checkpoint_state(p->checkpoint_open).broker_id == cursor.broker_id);
        stop(p);
    }
    OK(start(p));
    assert_int_equal(put_message(p, "next", 3, 0), last + 1);
    stop(p);
    expect(p, 3, 36, 5);
    unsigned found;
    OK(repair(p, false, &found));
    assert_int_equal(found, 0);
}

static void a_backup_tells_of_damaged_values(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    spoil(p->checkpoint, "data.mdb", "payload-0003");
    assert_int_equal(backup(p), ERR_CORRUPT);
    assert_non_null(strstr(p->told, "topic and payload of message"));
    assert_true(data_files_exist(p->backup, "BACKUP"));
}

static void a_damaged_body_costs_its_message(void **state)
{
    struct place *p = (struct place *)*state;
    fill_old(p);
    spoil(p->checkpoint, "data.mdb", "payload-0003");
    repair_all(p, "tree bodies");
    expect(p, 3, 27, 5);
}

static void a_damaged_retained_body_costs_its_value(void **state)
{
    struct place *p = (struct place *)*state;
    fill_old(p);
    spoil(p->checkpoint, "data.mdb", "retained-0004");
    repair_all(p, "values are damaged");
    expect(p, 3, 30, 4);
}

/* Written so, by whatever: its CRC is right, and it is none that the tree may hold. */
static void a_value_of_a_wrong_structure_is_damage(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    struct kv *kv;
    struct kv_txn *txn;
    struct kv_lmdb_options options = {.dir = p->checkpoint, .map_bytes = MAP_BYTES};
    uint8_t key[8];
    OK(kv_lmdb_open(&kv, &options, &p->msg));
    for (int i = 0; i < 2; i++) { /* in both commits that the file holds */
        OK(kv_begin(kv, &txn, true));
        OK(kv_put(txn, KV_SESSIONS, kv_key_u64(key, 2), SPAN_LITERAL("nonsense")));
        OK(kv_commit(txn));
    }
    kv_close(kv);
    repair_all(p, "session 2: its client id");
    expect(p, 2, 20, 5);
}

static void a_damaged_session_costs_its_queue(void **state)
{
    struct place *p = (struct place *)*state;
    fill_old(p);
    spoil(p->checkpoint, "data.mdb", "client-2");
    repair_all(p, "session 2: its client id");
    expect(p, 2, 20, 5);
}

static void a_missing_checkpoint_learns_what_the_log_holds(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    remove_dir(p->checkpoint);
    repair_all(p, "missing, and there was one (format 2)");
    expect(p, 3, 30, 5);
}

static void a_checkpoint_that_cannot_be_opened_goes_aside(void **state)
{
    struct place *p = (struct place *)*state;
    char path[256];
    fill(p);
    snprintf(path, sizeof path, "%s/data.mdb", p->checkpoint);
    assert_int_equal(truncate(path, 8192), 0);
    repair_all(p, "data.mdb");
    expect(p, 3, 30, 5);
}

static void zero_page(struct place *p, long page)
{
    char path[256];
    snprintf(path, sizeof path, "%s/data.mdb", p->checkpoint);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, page * 4096, SEEK_SET), 0);
    for (int i = 0; i < 4096; i++)
        assert_int_equal(fputc(0, file), 0);
    assert_int_equal(fclose(file), 0);
}

/* The log's first records are gone: nothing but the database has the sessions and what waits for them. */
static void forget_log(struct place *p)
{
    assert_true(p->data[0]);
    char path[256];
    for (uint64_t generation = 1;; generation++) {
        struct kv_lmdb_options options = {.dir = p->checkpoint, .read_only = true};
        char name[LOG_SEGMENT_NAME_SIZE];
        struct kv *kv;
        struct checkpoint *checkpoint;
        OK(kv_lmdb_open(&kv, &options, &p->msg));
        OK(checkpoint_open(&checkpoint, kv, 1, &p->msg));
        uint64_t needed = checkpoint_state(checkpoint).cursor.reopen.generation;
        checkpoint_free(checkpoint);
        kv_close(kv);
        if (generation >= needed) {
            assert_true(generation > 1);
            break;
        }
        log_segment_name(name, generation);
        snprintf(path, sizeof path, "%s/%s", p->log, name);
        assert_int_equal(remove(path), 0);
    }
}

/* One page that everything hangs on is gone; all others are whole, and all that they hold is kept. */
static void pages_that_lead_to_all_others_cost_nothing(void **state)
{
    struct place *p = (struct place *)*state;
    for (int what = 0; what < 4; what++) {
        struct kv_snapshot_source ways[2];
        unsigned count;
        use(p, "leads");
        assert_int_equal(mkdir(p->data, 0750), 0);
        fill_old(p);
        forget_log(p);
        OK(kv_snapshot_source_find(ways, &count, p->checkpoint, &p->msg));
        assert_int_equal(count, 2);
        if (what < 2)
            zero_page(p, what);
        if (what == 2)
            zero_page(p, (long)ways[ways[1].txn_number > ways[0].txn_number].main_root);
        if (what == 3) { /* both */
            zero_page(p, 0);
            zero_page(p, 1);
        }
        repair_all(p, "into a new database");
        assert_non_null(strstr(p->told, "nothing to repair"));
        expect(p, 3, 30, 5);
        remove_dir(p->data);
    }
}

/* The newest commit cannot be followed, and the log does not go back to the one before: it is used, and what lies between is told. */
static void an_older_commit_behind_the_log_is_told(void **state)
{
    struct place *p = (struct place *)*state;
    struct kv_snapshot_source ways[2];
    unsigned count, found;
    fill_old(p);
    OK(kv_snapshot_source_find(ways, &count, p->checkpoint, &p->msg));
    assert_int_equal(count, 2);
    zero_page(p, ways[1].txn_number > ways[0].txn_number);
    uint64_t *generations;
    size_t segment_count;
    OK(log_segment_list(fs_posix(), p->log, &generations, &segment_count, NULL));
    for (size_t i = 0; i + 2 < segment_count; i++) { /* the last was got ready by a start that wrote nothing */
        char name[LOG_SEGMENT_NAME_SIZE], path[256];
        log_segment_name(name, generations[i]);
        snprintf(path, sizeof path, "%s/%s", p->log, name);
        assert_int_equal(remove(path), 0);
    }
    free(generations);
    OK(repair(p, false, &found));
    assert_int_equal(found, 2);
    assert_non_null(strstr(p->told, "the other meta page cannot be read and may have been one newer"));
    assert_non_null(strstr(p->told, "and the log begins with record"));
    repair_all(p, "stands at record");
    expect(p, 3, 30, 5);
}

/* Pages in the middle are overwritten: whatever LMDB makes of it, the repair ends and a start succeeds. */
static void overwritten_pages_do_not_end_the_repair(void **state)
{
    struct place *p = (struct place *)*state;
    char path[256];
    for (long page = 2; page < 14; page++) {
        unsigned found;
        use(p, "pages");
        assert_int_equal(mkdir(p->data, 0750), 0);
        fill(p);
        snprintf(path, sizeof path, "%s/data.mdb", p->checkpoint);
        FILE *file = fopen(path, "r+b");
        assert_non_null(file);
        assert_int_equal(fseek(file, page * 4096, SEEK_SET), 0);
        for (int i = 0; i < 4096; i++)
            assert_int_not_equal(fputc(0xa5, file), EOF);
        assert_int_equal(fclose(file), 0);
        OK(repair(p, true, &found));
        OK(repair(p, false, &found));
        assert_int_equal(found, 0);
        assert_int_equal(look(p).corrupt, 0);
        remove_dir(p->data);
    }
}

static void a_log_that_does_not_reach_back_is_told(void **state)
{
    struct place *p = (struct place *)*state;
    char kept[160], path[256];
    fill(p);
    snprintf(kept, sizeof kept, "%s/old", p->root);
    assert_int_equal(rename(p->checkpoint, kept), 0); /* an old copy of the checkpoint */
    assert_int_equal(mkdir(p->checkpoint, 0750), 0);
    char from[192], to[192];
    uint64_t size;
    uint32_t crc;
    snprintf(from, sizeof from, "%s/data.mdb", kept);
    snprintf(to, sizeof to, "%s/data.mdb", p->checkpoint);
    OK(data_files_copy(&size, &crc, fs_posix(), from, to, UINT64_MAX, &p->msg));
    for (int i = 0; i < 3; i++) {
        OK(start(p));
        put_message(p, "more", 3, 0);
        stop(p);
    }
    remove_dir(p->checkpoint);
    assert_int_equal(rename(kept, p->checkpoint), 0);
    for (uint64_t generation = 1; generation <= 3; generation++) {
        char name[LOG_SEGMENT_NAME_SIZE];
        log_segment_name(name, generation);
        snprintf(path, sizeof path, "%s/%s", p->log, name);
        (void)unlink(path);
    }
    repair_all(p, "stands at record");
    struct counts counts = look(p);
    assert_int_equal(counts.sessions, 3);
    assert_true(counts.wants >= 30);
}

/* The checkpoint has seen what stands behind the hole, and says so; nothing of that is lost. */
static void a_hole_before_the_checkpoint_costs_nothing_of_it(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    OK(start(p));
    OK(log_writer_ensure_cursor(p->writer, "sink", &p->msg));
    uint64_t last = put_message(p, "last", 3, 0);
    stop(p);
    expect(p, 3, 33, 5);
    spoil(p->log, "0000000000000001.seg", "payload-0005");
    assert_int_equal(start(p), ERR_CORRUPT);
    assert_non_null(strstr(p->msg.text, "see `tidegate-broker repair`"));
    stop(p);
    repair_all(p, "does not continue at offset");
    expect(p, 3, 33, 5);
    OK(start(p));
    assert_true(put_message(p, "next", 3, 0) > last);
    stop(p);
    expect(p, 3, 36, 5);
}

/* The log is gone altogether: what the checkpoint has stays, and numbers go on above it. */
static void a_log_that_is_gone(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    remove_dir(p->log);
    assert_int_equal(start(p), ERR_CORRUPT);
    stop(p);
    repair_all(p, "checkpoint proves that it was durable");
    expect(p, 3, 30, 5);
    OK(start(p));
    assert_true(put_message(p, "next", 3, 0) > 18);
    stop(p);
    expect(p, 3, 33, 5);
}

static void a_directory_in_use_or_missing_is_refused(void **state)
{
    struct place *p = (struct place *)*state;
    unsigned found;
    use(p, "nowhere");
    assert_int_equal(repair(p, false, &found), ERR_NOTFOUND);
    assert_int_equal(backup(p), ERR_NOTFOUND);
    assert_false(data_files_exist(p->data, "."));
    assert_false(data_files_exist(p->backup, "."));
    assert_int_equal(restore(p), ERR_NOTFOUND);
}

/* However the path is written; a neighbour whose name begins alike is none inside. */
static void a_backup_does_not_go_into_its_data(void **state)
{
    struct place *p = (struct place *)*state;
    fill(p);
    char link[160], elsewhere[160], moved[176];
    snprintf(link, sizeof link, "%s/link", p->root);
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", p->root);
    snprintf(moved, sizeof moved, "%s/log", elsewhere);
    assert_int_equal(symlink("data", link), 0);
    assert_int_equal(mkdir(elsewhere, 0750), 0);
    assert_int_equal(rename(p->log, moved), 0); /* as on a disk of its own */
    assert_int_equal(symlink(moved, p->log), 0);
    static const char *const inside[] = {"data/backup",    "data/log/backup",      "data/a/b/backup",
                                         "link/backup",    "link/./a//backup/",    "no/../data/a/backup",
                                         "data/../link/a", "elsewhere/log/backup", "data/log"};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        snprintf(p->backup, sizeof p->backup, "%s/%s", p->root, inside[i]);
        enum err err = backup(p);
        if (err != ERR_INVALID && !(err == ERR_EXISTS && strcmp(inside[i], "data/log") == 0))
            fail_msg("%s: %s: %s", inside[i], err_text(err), p->msg.text);
        assert_true(err == ERR_EXISTS || strstr(p->msg.text, "inside the data directory"));
    }
    static const char *const outside[] = {"data2", "elsewhere/backup", "data/../backup", "link/../link/../new/a"};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        snprintf(p->backup, sizeof p->backup, "%s/%s", p->root, outside[i]);
        OK(backup(p));
    }
    use(p, "new/a/data"); /* and nothing is restored into a backup */
    assert_int_equal(restore(p), ERR_INVALID);
    assert_false(data_files_exist(p->data, "."));
    use(p, "beside");
    OK(restore(p));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_backup_is_restored_and_goes_on_under_its_own_id),
        TEST(a_backup_tells_of_damaged_values),
        TEST(a_backup_does_not_go_into_its_data),
        TEST(a_damaged_body_costs_its_message),
        TEST(a_damaged_retained_body_costs_its_value),
        TEST(a_damaged_session_costs_its_queue),
        TEST(a_value_of_a_wrong_structure_is_damage),
        TEST(a_missing_checkpoint_learns_what_the_log_holds),
        TEST(a_checkpoint_that_cannot_be_opened_goes_aside),
        TEST(pages_that_lead_to_all_others_cost_nothing),
        TEST(an_older_commit_behind_the_log_is_told),
        TEST(overwritten_pages_do_not_end_the_repair),
        TEST(a_log_that_does_not_reach_back_is_told),
        TEST(a_hole_before_the_checkpoint_costs_nothing_of_it),
        TEST(a_log_that_is_gone),
        TEST(a_directory_in_use_or_missing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
