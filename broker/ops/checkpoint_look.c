#include "broker/ops/checkpoint_look.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/ops/data_files.h"

static void add_damage(struct checkpoint_look *look, enum kv_tree tree, struct span key)
{
    look->damage_count++;
    if (look->damage_known == CHECKPOINT_LOOK_MAX || key.size > KV_KEY_MAX)
        return;
    struct checkpoint_damage *damage = &look->damage[look->damage_known++];
    damage->tree = (uint8_t)tree;
    damage->key_size = (uint8_t)key.size;
    if (key.size)
        memcpy(damage->key, key.data, key.size);
}

static enum err walk_tree(struct checkpoint_look *look, struct kv_txn *txn, enum kv_tree tree)
{
    uint8_t last[KV_KEY_MAX];
    struct span key, value, before = {0};
    enum err err = kv_seek(txn, tree, span_of(NULL, 0), &key, &value);
    while (!err || (err == ERR_CORRUPT && key.size)) {
        bool is_ascending = before.size == 0 || span_compare(before, key) < 0;
        look->entry_count++;
        if (err || !is_ascending || checkpoint_check_entry(tree, key, value) != ERR_OK)
            add_damage(look, tree, key);
        if (is_ascending && key.size <= sizeof last) {
            memcpy(last, key.data, key.size);
            before = span_of(last, key.size);
        }
        err = kv_next(txn, tree, &key, &value);
    }
    if (err == ERR_CORRUPT)
        add_damage(look, tree, span_of(NULL, 0));
    return err == ERR_NOTFOUND || err == ERR_CORRUPT ? ERR_OK : err;
}

/* After damage of a tree LMDB refuses everything in the transaction: one for each. */
static enum err walk(struct checkpoint_look *look, struct kv *kv)
{
    enum err err = ERR_OK;
    for (int t = 0; t < KV_TREE_COUNT && !err; t++) {
        struct kv_txn *txn;
        look->phase = t;
        if (look->is_lost[t]) {
            add_damage(look, (enum kv_tree)t, span_of(NULL, 0));
            continue;
        }
        err = kv_begin(kv, &txn, false);
        if (err)
            break;
        err = walk_tree(look, txn, (enum kv_tree)t);
        kv_abort(txn);
    }
    look->phase = KV_TREE_COUNT;
    return err;
}

static void look_through(struct checkpoint_look *look, struct kv *kv, bool values)
{
    struct checkpoint *checkpoint = NULL;
    look->err = checkpoint_open(&checkpoint, kv, 0, &look->why);
    if (!look->err)
        look->state = checkpoint_state(checkpoint);
    checkpoint_free(checkpoint);
    enum err err = look->err || !values ? ERR_OK : walk(look, kv);
    if (err)
        look->err = err_set(&look->why, err, "%s: %s", kv_name(kv), err_text(err));
}

struct task {
    struct checkpoint_look *look;
    const char *dir;
    bool values;
};

static void look_at(void *arg)
{
    const struct task *task = (const struct task *)arg;
    struct checkpoint_look *look = task->look;
    struct kv *kv = NULL;
    struct kv_lmdb_options options = {.dir = task->dir, .read_only = true};
    look->phase = -1;
    look->entry_count = look->damage_count = look->damage_known = 0;
    look->err = kv_lmdb_open(&kv, &options, &look->why);
    if (!look->err)
        look_through(look, kv, task->values);
    if (!look->err && task->values && !look->is_free_damaged) {
        look->is_free_damaged = true; /* unless we live to say otherwise */
        look->is_free_damaged = kv_lmdb_check_free(kv) != ERR_OK;
    }
    kv_close(kv);
}

/* Run fn(arg) in a process of its own, which shares with this one only memory that is shared. Returns 0, ERR_CORRUPT (it was ended by a
 * signal, *signal_out), ERR_NOMEM (it cannot be started). */
static enum err survive(void (*fn)(void *arg), void *arg, int *signal_out)
{
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    int status = 0;
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
            (void)signal(fatal[i], SIG_DFL); /* whoever caught them before: here they are the answer */
        (void)prctl(PR_SET_DUMPABLE, 0);     /* no core for an end that is expected */
        fn(arg);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return ERR_NOMEM;
    *signal_out = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return *signal_out || WEXITSTATUS(status) != 0 ? ERR_CORRUPT : ERR_OK;
}

enum err checkpoint_look(struct checkpoint_look **look_out, const char *dir, bool values, struct errmsg *msg)
{
    struct checkpoint_look *look =
        (struct checkpoint_look *)mmap(NULL, sizeof *look, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (look == MAP_FAILED)
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    struct task task = {look, dir, values};
    look->is_there = data_files_exist(dir, "data.mdb");
    *look_out = look;
    if (!look->is_there)
        return ERR_OK;
    for (;;) {
        int signal = 0;
        enum err err = survive(look_at, &task, &signal);
        if (err == ERR_NOMEM) {
            checkpoint_look_free(look);
            *look_out = NULL;
            return err_set(msg, err, "%s: cannot start a process to look at it", dir);
        }
        if (err && look->phase >= 0 && look->phase < KV_TREE_COUNT && !look->is_lost[look->phase]) {
            look->is_lost[look->phase] = true; /* again, past it */
            continue;
        }
        if (err && look->phase < 0)
            look->err = signal ? err_set(&look->why, ERR_CORRUPT, "%s: a page is damaged: the process that read it was ended by signal %d",
                                         dir, signal)
                               : err_set(&look->why, ERR_CORRUPT, "%s: a page is damaged: LMDB does not read on", dir);
        return ERR_OK;
    }
}

enum err checkpoint_look_kv(struct checkpoint_look **look_out, struct kv *kv, bool values, struct errmsg *msg)
{
    struct checkpoint_look *look =
        (struct checkpoint_look *)mmap(NULL, sizeof *look, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (look == MAP_FAILED)
        return err_set(msg, ERR_NOMEM, "%s: %s", kv_name(kv), err_text(ERR_NOMEM));
    look->is_there = true;
    look_through(look, kv, values);
    *look_out = look;
    return ERR_OK;
}

void checkpoint_look_free(struct checkpoint_look *look)
{
    if (look)
        (void)munmap(look, sizeof *look);
}

void checkpoint_damage_text(char text_out[CHECKPOINT_LOOK_TEXT], const struct checkpoint_damage *damage)
{
    uint64_t first = damage->key_size >= 8 ? kv_key_read_u64(damage->key) : 0;
    uint64_t second = damage->key_size >= 16 ? kv_key_read_u64(damage->key + 8) : 0;
    const size_t size = CHECKPOINT_LOOK_TEXT;
    if (damage->key_size == 0) {
        snprintf(text_out, size, "the tree itself; what stands behind the place cannot be read");
        return;
    }
    switch ((enum kv_tree)damage->tree) {
    case KV_SESSIONS:
        snprintf(text_out, size, "session %" PRIu64 ": its client id, subscriptions, will and open QoS 2 exchanges", first);
        break;
    case KV_RECIPIENTS:
        snprintf(text_out, size, "who still wants message %" PRIu64 " (session %" PRIu64 " and others), and up to %d messages behind it",
                 first, second, CHECKPOINT_ROW_WANTS - 1);
        break;
    case KV_BODIES:
        snprintf(text_out, size, "topic and payload of message %" PRIu64 ", and of small ones behind it", first);
        break;
    case KV_HOLDERS:
        snprintf(text_out, size, "by how many message %" PRIu64 " is held", first);
        break;
    case KV_RUNS:
        snprintf(text_out, size, "queue of session %" PRIu64 " from message %" PRIu64 " on (made again at a start)", first, second);
        break;
    case KV_RETAINED:
        snprintf(text_out, size, "one retained message; its topic stood in the value");
        break;
    case KV_META:
    case KV_TREE_COUNT:
        snprintf(text_out, size, "what describes the whole: \"%.*s\"", (int)damage->key_size, (const char *)damage->key);
        break;
    }
}
