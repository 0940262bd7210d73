#include "tests/lib/sim_kv.h"

#include "common/check.h"
#include "tests/lib/check_random.h"

#include <stdlib.h>

#define SIM_KV_MAGIC 0x51B0C47Eu
#define ENTRY_FRAME 16 /* bytes that an entry is charged for beside key and value */

/* A key and its value with CRC. Shared by nodes; changed only by sim_kv_flip(). */
struct entry {
    uint64_t refs;
    size_t value_size;
    uint8_t key_size;
    uint8_t bytes[]; /* key, value */
};

struct node {
    uint64_t refs;
    uint64_t priority; /* of a parent: at least that of its children */
    struct node *left, *right;
    struct entry *entry;
};

/* All trees at one moment. */
struct version {
    struct node *roots[KV_TREE_COUNT];
    uint64_t entries[KV_TREE_COUNT];
    uint64_t bytes;
};

/* Spans given out. */
struct loan {
    struct loan *next;
    uint8_t bytes[];
};

struct sim_txn {
    struct kv_txn base;
    struct sim_txn *next;
    struct version version;
    struct loan *loans;
    struct entry *places[KV_TREE_COUNT];
};

struct handle {
    struct kv base;
    unsigned magic;
    struct sim_kv *sim;
    struct handle *next;
    struct sim_txn *txns;
    bool is_dead, is_failed, has_writer;
};

struct sim_kv {
    struct version committed;
    struct version doubtful; /* of the commit that failed, when has_doubtful */
    bool has_doubtful;
    struct handle *current, *dead;
    struct check_random random;
    enum sim_kv_fate fate;
    struct {
        enum err err;
        uint64_t skip;
    } faults[SIM_KV_CALL_COUNT];
    uint64_t capacity;
    struct sim_kv_counts counts;
};

static void *must_alloc(size_t size)
{
    void *memory = calloc(1, size);
    CHECK(memory);
    return memory;
}

/* --- treap -------------------------------------------------------------------------------------------------------------------------- */

static struct span entry_key(const struct entry *e) { return span_of(e->bytes, e->key_size); }
static struct span entry_value(const struct entry *e) { return span_of(e->bytes + e->key_size, e->value_size); }
static uint64_t entry_cost(const struct entry *e) { return ENTRY_FRAME + e->key_size + e->value_size; }

static void entry_unref(struct entry *e)
{
    if (e && --e->refs == 0)
        free(e);
}

static struct entry *entry_ref(struct entry *e)
{
    if (e)
        e->refs++;
    return e;
}

/* FNV-1a with a finish: the shape of a tree follows from its keys. */
static uint64_t priority_of(struct span key)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < key.size; i++)
        hash = (hash ^ key.data[i]) * 0x100000001b3u;
    hash ^= hash >> 32;
    hash *= 0xd6e8feb86659fd93u;
    return hash ^ hash >> 32;
}

static struct node *node_ref(struct node *n)
{
    if (n)
        n->refs++;
    return n;
}

static void node_unref(struct node *n)
{
    while (n && --n->refs == 0) {
        struct node *right = n->right;
        node_unref(n->left);
        entry_unref(n->entry);
        free(n);
        n = right;
    }
}

/* Takes a reference, returns one of a node that nobody else sees. */
static struct node *node_own(struct node *n)
{
    if (n->refs == 1)
        return n;
    struct node *copy = (struct node *)must_alloc(sizeof *copy);
    *copy = (struct node){1, n->priority, node_ref(n->left), node_ref(n->right), entry_ref(n->entry)};
    node_unref(n);
    return copy;
}

static struct entry *node_find(const struct node *n, struct span key)
{
    while (n) {
        int order = span_compare(key, entry_key(n->entry));
        if (order == 0)
            return n->entry;
        n = order < 0 ? n->left : n->right;
    }
    return NULL;
}

/* The first at or after `key` (after it, if is_strict). */
static struct entry *node_ceil(const struct node *n, struct span key, bool is_strict)
{
    struct entry *found = NULL;
    while (n) {
        int order = span_compare(key, entry_key(n->entry));
        if (order < 0 || (order == 0 && !is_strict)) {
            found = n->entry;
            n = n->left;
        } else {
            n = n->right;
        }
    }
    return found;
}

static struct entry *node_floor(const struct node *n, struct span key)
{
    struct entry *found = NULL;
    while (n) {
        if (span_compare(key, entry_key(n->entry)) >= 0) {
            found = n->entry;
            n = n->right;
        } else {
            n = n->left;
        }
    }
    return found;
}

static struct node *rotate_right(struct node *n)
{
    struct node *up = n->left;
    n->left = up->right;
    up->right = n;
    return up;
}

static struct node *rotate_left(struct node *n)
{
    struct node *up = n->right;
    n->right = up->left;
    up->left = n;
    return up;
}

/* Takes n and e, returns the tree with e in it. */
static struct node *node_insert(struct node *n, struct entry *e)
{
    if (!n) {
        n = (struct node *)must_alloc(sizeof *n);
        *n = (struct node){1, priority_of(entry_key(e)), NULL, NULL, e};
        return n;
    }
    n = node_own(n);
    int order = span_compare(entry_key(e), entry_key(n->entry));
    if (order == 0) {
        entry_unref(n->entry);
        n->entry = e;
    } else if (order < 0) {
        n->left = node_insert(n->left, e);
        if (n->left->priority > n->priority)
            n = rotate_right(n);
    } else {
        n->right = node_insert(n->right, e);
        if (n->right->priority > n->priority)
            n = rotate_left(n);
    }
    return n;
}

/* Takes both; all keys of a are less than those of b. */
static struct node *node_merge(struct node *a, struct node *b)
{
    if (!a || !b)
        return a ? a : b;
    if (a->priority >= b->priority) {
        a = node_own(a);
        a->right = node_merge(a->right, b);
        return a;
    }
    b = node_own(b);
    b->left = node_merge(a, b->left);
    return b;
}

/* Takes n, in which `key` is. */
static struct node *node_remove(struct node *n, struct span key)
{
    CHECK(n);
    n = node_own(n);
    int order = span_compare(key, entry_key(n->entry));
    if (order < 0) {
        n->left = node_remove(n->left, key);
    } else if (order > 0) {
        n->right = node_remove(n->right, key);
    } else {
        struct node *rest = node_merge(n->left, n->right);
        n->left = n->right = NULL;
        node_unref(n);
        n = rest;
    }
    return n;
}

static struct version version_ref(const struct version *version)
{
    for (int t = 0; t < KV_TREE_COUNT; t++)
        node_ref(version->roots[t]);
    return *version;
}

static void version_unref(struct version *version)
{
    for (int t = 0; t < KV_TREE_COUNT; t++)
        node_unref(version->roots[t]);
    *version = (struct version){0};
}

/* --- transactions ------------------------------------------------------------------------------------------------------------------- */

static struct handle *handle_of(struct kv *kv)
{
    struct handle *handle = (struct handle *)kv;
    CHECK(handle->magic == SIM_KV_MAGIC);
    return handle;
}

static enum err fault(struct sim_kv *sim, enum sim_kv_call call)
{
    enum err err = sim->faults[call].err;
    if (!err)
        return ERR_OK;
    if (sim->faults[call].skip) {
        sim->faults[call].skip--;
        return ERR_OK;
    }
    sim->faults[call].err = ERR_OK;
    return err;
}

static void free_loans(struct loan *loan)
{
    while (loan) {
        struct loan *next = loan->next;
        free(loan);
        loan = next;
    }
}

/* The loans of a write transaction end with its next call; what this returns is freed once the arguments are read. */
static struct loan *call_begin(struct sim_txn *txn)
{
    if (!txn->base.is_write)
        return NULL;
    struct loan *old = txn->loans;
    txn->loans = NULL;
    return old;
}

static struct span lend(struct sim_txn *txn, struct span bytes)
{
    struct loan *loan = (struct loan *)malloc(sizeof *loan + bytes.size);
    CHECK(loan);
    memcpy(loan->bytes, bytes.data, bytes.size);
    loan->next = txn->loans;
    txn->loans = loan;
    return span_of(loan->bytes, bytes.size);
}

static enum err sim_begin(struct kv *kv, struct kv_txn **txn_out, bool is_write)
{
    struct handle *handle = handle_of(kv);
    if (handle->is_dead)
        return ERR_CLOSED;
    if (is_write && handle->is_failed)
        return ERR_IO;
    enum err err = fault(handle->sim, is_write ? SIM_KV_BEGIN_WRITE : SIM_KV_BEGIN_READ);
    if (err)
        return err;
    CHECK(!is_write || !handle->has_writer);
    handle->has_writer |= is_write;
    struct sim_txn *txn = (struct sim_txn *)must_alloc(sizeof *txn);
    txn->version = version_ref(&handle->sim->committed);
    txn->next = handle->txns;
    handle->txns = txn;
    *txn_out = &txn->base;
    return ERR_OK;
}

static void sim_abort(struct kv_txn *base)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct handle *handle = handle_of(base->kv);
    struct sim_txn **at = &handle->txns;
    while (*at != txn) {
        CHECK(*at);
        at = &(*at)->next;
    }
    *at = txn->next;
    if (base->is_write)
        handle->has_writer = false;
    version_unref(&txn->version);
    free_loans(txn->loans);
    for (int t = 0; t < KV_TREE_COUNT; t++)
        entry_unref(txn->places[t]);
    free(txn);
}

static enum err sim_commit(struct kv_txn *base)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct handle *handle = handle_of(base->kv);
    struct sim_kv *sim = handle->sim;
    enum err err = handle->is_dead ? ERR_CLOSED : fault(sim, SIM_KV_COMMIT);
    if (err == ERR_OK) {
        sim->counts.commits++;
        version_unref(&sim->committed);
        sim->committed = version_ref(&txn->version);
    } else if (!handle->is_dead) {
        sim->counts.failed_commits++;
        sim->counts.no_space += err == ERR_NOSPACE;
        if (err != ERR_NOSPACE && err != ERR_NOMEM) {
            handle->is_failed = true;
            sim->doubtful = version_ref(&txn->version);
            sim->has_doubtful = true;
        }
    }
    sim_abort(base);
    return err;
}

static enum err begin_read(struct sim_txn *txn)
{
    struct handle *handle = handle_of(txn->base.kv);
    return handle->is_dead ? ERR_CLOSED : fault(handle->sim, SIM_KV_READ);
}

static enum err sim_get(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *value_out)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct loan *old = call_begin(txn);
    enum err err = begin_read(txn);
    const struct entry *found = err ? NULL : node_find(txn->version.roots[tree], key);
    if (found)
        *value_out = lend(txn, entry_value(found));
    free_loans(old);
    return err ? err : found ? ERR_OK : ERR_NOTFOUND;
}

/* The end of each step of a walk. */
static enum err stand_at(struct sim_txn *txn, enum kv_tree tree, struct entry *found, struct span *key_out, struct span *value_out)
{
    entry_ref(found);
    entry_unref(txn->places[tree]);
    txn->places[tree] = found;
    if (!found)
        return ERR_NOTFOUND;
    *key_out = lend(txn, entry_key(found));
    *value_out = lend(txn, entry_value(found));
    return ERR_OK;
}

static enum err sim_seek(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct loan *old = call_begin(txn);
    enum err err = begin_read(txn);
    if (!err)
        err = stand_at(txn, tree, node_ceil(txn->version.roots[tree], key, false), key_out, value_out);
    free_loans(old);
    return err;
}

static enum err sim_next(struct kv_txn *base, enum kv_tree tree, struct span *key_out, struct span *value_out)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct loan *old = call_begin(txn);
    enum err err = begin_read(txn);
    if (!err) {
        CHECK(txn->places[tree]);
        err = stand_at(txn, tree, node_ceil(txn->version.roots[tree], entry_key(txn->places[tree]), true), key_out, value_out);
    }
    free_loans(old);
    return err;
}

static enum err sim_floor(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct loan *old = call_begin(txn);
    enum err err = begin_read(txn);
    if (!err)
        err = stand_at(txn, tree, node_floor(txn->version.roots[tree], key), key_out, value_out);
    free_loans(old);
    return err;
}

/* Who walks on after a change has to seek anew: the contract of kv_ops. */
static void forget_place(struct sim_txn *txn, enum kv_tree tree)
{
    entry_unref(txn->places[tree]);
    txn->places[tree] = NULL;
}

static enum err sim_put(struct kv_txn *base, enum kv_tree tree, struct span key, struct span value, const uint8_t crc[4])
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct handle *handle = handle_of(base->kv);
    struct sim_kv *sim = handle->sim;
    struct version *version = &txn->version;
    struct loan *old_loans = call_begin(txn);
    struct entry *e = NULL;
    enum err err = handle->is_dead ? ERR_CLOSED : fault(sim, SIM_KV_PUT);
    if (err)
        goto out;
    e = (struct entry *)must_alloc(sizeof *e + key.size + value.size + 4);
    e->refs = 1;
    e->key_size = (uint8_t)key.size;
    e->value_size = value.size + 4;
    memcpy(e->bytes, key.data, key.size);
    if (value.size)
        memcpy(e->bytes + key.size, value.data, value.size);
    memcpy(e->bytes + key.size + value.size, crc, 4);
    const struct entry *old = node_find(version->roots[tree], key);
    uint64_t bytes = version->bytes + entry_cost(e) - (old ? entry_cost(old) : 0);
    err = sim->capacity && bytes > sim->capacity && bytes > version->bytes ? ERR_NOSPACE : ERR_OK;
    if (err)
        goto out;
    sim->counts.puts++;
    forget_place(txn, tree);
    version->bytes = bytes;
    version->entries[tree] += !old;
    version->roots[tree] = node_insert(version->roots[tree], e);
    e = NULL;
out:
    sim->counts.no_space += err == ERR_NOSPACE;
    entry_unref(e);
    free_loans(old_loans);
    return err;
}

static enum err sim_del(struct kv_txn *base, enum kv_tree tree, struct span key)
{
    struct sim_txn *txn = (struct sim_txn *)base;
    struct handle *handle = handle_of(base->kv);
    struct version *version = &txn->version;
    struct loan *old_loans = call_begin(txn);
    enum err err = handle->is_dead ? ERR_CLOSED : fault(handle->sim, SIM_KV_DEL);
    const struct entry *old = err ? NULL : node_find(version->roots[tree], key);
    if (!err && !old)
        err = ERR_NOTFOUND;
    if (!err) {
        handle->sim->counts.dels++;
        forget_place(txn, tree);
        version->bytes -= entry_cost(old);
        version->entries[tree]--;
        version->roots[tree] = node_remove(version->roots[tree], key);
    }
    free_loans(old_loans);
    return err;
}

static enum err sim_stats(struct kv *kv, struct kv_stats *stats_out)
{
    struct handle *handle = handle_of(kv);
    if (handle->is_dead)
        return ERR_CLOSED;
    const struct version *version = &handle->sim->committed;
    stats_out->used_bytes = stats_out->file_bytes = version->bytes;
    stats_out->map_bytes = handle->sim->capacity ? handle->sim->capacity : UINT64_MAX;
    memcpy(stats_out->entries, version->entries, sizeof version->entries);
    return ERR_OK;
}

/* --- life --------------------------------------------------------------------------------------------------------------------------- */

/* A process has ended: what the failed commit left on the disk is now known. */
static void settle_doubt(struct sim_kv *sim)
{
    if (!sim->has_doubtful)
        return;
    sim->has_doubtful = false;
    bool survived = sim->fate == SIM_KV_SURVIVED || (sim->fate == SIM_KV_RANDOM && check_random_below(&sim->random, 2));
    if (survived) {
        version_unref(&sim->committed);
        sim->committed = sim->doubtful;
        sim->doubtful = (struct version){0};
    } else {
        version_unref(&sim->doubtful);
    }
}

static void sim_close(struct kv *kv)
{
    struct handle *handle = handle_of(kv);
    struct sim_kv *sim = handle->sim;
    CHECK(!handle->txns);
    if (handle->is_dead) {
        struct handle **at = &sim->dead;
        while (*at != handle)
            at = &(*at)->next;
        *at = handle->next;
    } else {
        CHECK(sim->current == handle);
        sim->current = NULL;
        settle_doubt(sim);
    }
    handle->magic = 0;
    free(handle);
}

static const struct kv_ops sim_kv_ops = {
    .begin = sim_begin,
    .commit = sim_commit,
    .abort = sim_abort,
    .get = sim_get,
    .put = sim_put,
    .del = sim_del,
    .seek = sim_seek,
    .next = sim_next,
    .floor = sim_floor,
    .stats = sim_stats,
    .close = sim_close,
};

struct sim_kv *sim_kv_new(uint64_t seed)
{
    struct sim_kv *sim = (struct sim_kv *)must_alloc(sizeof *sim);
    check_random_init(&sim->random, seed);
    return sim;
}

struct kv *sim_kv_open(struct sim_kv *sim)
{
    CHECK(!sim->current);
    struct handle *handle = (struct handle *)must_alloc(sizeof *handle);
    handle->base.ops = &sim_kv_ops;
    handle->magic = SIM_KV_MAGIC;
    handle->sim = sim;
    sim->current = handle;
    return &handle->base;
}

void sim_kv_crash(struct sim_kv *sim)
{
    sim->counts.crashes++;
    struct handle *handle = sim->current;
    if (!handle)
        return;
    sim->current = NULL;
    handle->is_dead = true;
    handle->next = sim->dead;
    sim->dead = handle;
    settle_doubt(sim);
}

void sim_kv_free(struct sim_kv *sim)
{
    if (!sim)
        return;
    sim_kv_crash(sim);
    while (sim->dead) {
        while (sim->dead->txns)
            sim_abort(&sim->dead->txns->base);
        sim_close(&sim->dead->base);
    }
    version_unref(&sim->committed);
    free(sim);
}

void sim_kv_fail(struct sim_kv *sim, enum sim_kv_call call, enum err err, uint64_t skip)
{
    CHECK((unsigned)call < SIM_KV_CALL_COUNT);
    sim->faults[call].err = err;
    sim->faults[call].skip = skip;
}

void sim_kv_set_fate(struct sim_kv *sim, enum sim_kv_fate fate) { sim->fate = fate; }

void sim_kv_set_capacity(struct sim_kv *sim, uint64_t bytes) { sim->capacity = bytes; }

bool sim_kv_flip(struct sim_kv *sim, enum kv_tree tree, struct span key, size_t byte_index)
{
    struct entry *found = node_find(sim->committed.roots[tree], key);
    if (!found)
        return false;
    CHECK(byte_index < found->value_size);
    found->bytes[found->key_size + byte_index] ^= 0x40;
    return true;
}

struct sim_kv_counts sim_kv_counts(const struct sim_kv *sim)
{
    struct sim_kv_counts counts = sim->counts;
    counts.used_bytes = sim->committed.bytes;
    return counts;
}
