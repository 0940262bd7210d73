/* Set and epoch: random operations beside a plain array, with hashes that collide, and readers looking on while the writer changes things.
 */
#include "common/set.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/epoch.h"
#include "common/hash.h"
#include "tests/lib/check_random.h"

struct item {
    uint64_t key; /* before the entry: it need not be first */
    struct set_entry entry;
    uint64_t check;
};

static struct item *item_of(const struct set_entry *entry)
{
    return entry == NULL ? NULL : (struct item *)(void *)((char *)(uintptr_t)entry - offsetof(struct item, entry));
}

static bool item_equal(const struct set_entry *entry, const void *key) { return item_of(entry)->key == *(const uint64_t *)key; }

static struct item *find(const struct set *set, uint64_t key, uint64_t hash) { return item_of(set_find(set, hash, item_equal, &key)); }

static struct item *item_new(uint64_t key, uint64_t hash)
{
    struct item *item = malloc(sizeof *item);
    *item = (struct item){.key = key, .entry = {hash}, .check = ~key};
    return item;
}

static void count_item(struct set_entry *entry, void *arg)
{
    assert_int_equal(item_of(entry)->check, ~item_of(entry)->key);
    ++*(size_t *)arg;
}

#define KEYS 20000

/* spread: how many bits of the hash are real; few bits make collisions and deep directories. */
static void run_model(uint64_t seed, uint64_t hash_mask, int steps)
{
    struct check_random random;
    check_random_init(&random, check_random_seed(seed));
    struct epoch *epoch = epoch_new();
    struct set set;
    assert_int_equal(set_init(&set, epoch), ERR_OK);
    size_t empty_bytes = set.bytes;
    static struct item *model[KEYS];
    memset(model, 0, sizeof model);
    size_t count = 0;
    for (int step = 0; step < steps; step++) {
        uint64_t key = check_random_below(&random, KEYS);
        uint64_t hash = hash_u64(key, 7) & hash_mask;
        bool grow = (step / 15000) % 2 == 0; /* phases that fill, phases that empty */
        struct item *found = find(&set, key, hash);
        assert_ptr_equal(found, model[key]);
        if (found == NULL && (grow || check_random_chance(&random, 1, 8))) {
            model[key] = item_new(key, hash);
            assert_int_equal(set_put(&set, &model[key]->entry), ERR_OK);
            count++;
        } else if (found != NULL && (!grow || check_random_chance(&random, 1, 8))) {
            set_remove(&set, &found->entry);
            epoch_defer_free(epoch, found);
            model[key] = NULL;
            count--;
        }
        assert_int_equal(set.count, count);
        if (step % 64 == 0)
            epoch_poll(epoch);
    }
    size_t visited = 0;
    set_each(&set, count_item, &visited);
    assert_int_equal(visited, count);
    for (uint64_t key = 0; key < KEYS; key++) {
        uint64_t hash = hash_u64(key, 7) & hash_mask;
        assert_ptr_equal(find(&set, key, hash), model[key]);
        if (model[key] == NULL)
            continue;
        set_remove(&set, &model[key]->entry);
        assert_null(find(&set, key, hash));
        epoch_defer_free(epoch, model[key]);
    }
    assert_int_equal(set.count, 0);
    assert_int_equal(set.bytes, empty_bytes); /* what it grew it gave back */
    set_deinit(&set);
    epoch_free(epoch);
}

static void finds_what_a_plain_array_finds(void **state)
{
    (void)state;
    run_model(1, UINT64_MAX, 120000);
}

static void survives_hashes_that_collide(void **state)
{
    (void)state;
    run_model(2, 0x3ff, 40000);               /* 1024 different hashes, all in one slice of the directory */
    run_model(3, 0xff00000000000000u, 40000); /* all in one slot */
}

static void nothing_is_freed_under_a_reader(void **state)
{
    (void)state;
    struct epoch *epoch = epoch_new();
    struct epoch_reader *reader = epoch_reader_register(epoch);
    epoch_begin(reader);
    assert_true(epoch_is_active(reader));
    for (int i = 0; i < 1000; i++)
        epoch_defer_free(epoch, malloc(16));
    for (int i = 0; i < 10; i++)
        assert_true(epoch_poll(epoch));
    assert_int_equal(epoch_deferred_count(epoch), 1000);
    epoch_end(reader);
    assert_false(epoch_is_active(reader));
    for (int i = 0; i < 10 && epoch_poll(epoch); i++) {
    }
    assert_int_equal(epoch_deferred_count(epoch), 0);
    epoch_reader_unregister(reader);
    assert_ptr_equal(epoch_reader_register(epoch), reader); /* used again */
    epoch_defer_free(epoch, malloc(16));                    /* freed by epoch_free */
    epoch_free(epoch);
}

struct shared {
    struct set set;
    struct epoch *epoch;
    _Atomic bool stop;
    _Atomic uint64_t lookups;
};

#define STEADY 512 /* keys 0..STEADY-1 stay for ever; others come and go */

static void *look_on(void *arg)
{
    struct shared *shared = arg;
    struct epoch_reader *reader = epoch_reader_register(shared->epoch);
    uint64_t lookups = 0;
    while (!atomic_load_explicit(&shared->stop, memory_order_relaxed)) {
        epoch_begin(reader);
        for (uint64_t i = 0; i < 64; i++, lookups++) {
            uint64_t key = lookups * 7919 % 8192;
            struct item *item = find(&shared->set, key, hash_u64(key, 7));
            if (key < STEADY && item == NULL)
                abort(); /* a steady key was missed */
            if (item != NULL && (item->key != key || item->check != ~key))
                abort(); /* torn or freed */
        }
        epoch_end(reader);
        atomic_store_explicit(&shared->lookups, lookups, memory_order_relaxed);
    }
    epoch_reader_unregister(reader);
    return NULL;
}

static void readers_never_miss_what_stays(void **state)
{
    (void)state;
    struct shared shared = {.epoch = epoch_new()};
    assert_int_equal(set_init(&shared.set, shared.epoch), ERR_OK);
    static struct item *items[8192];
    memset(items, 0, sizeof items);
    for (uint64_t key = 0; key < STEADY; key++) {
        items[key] = item_new(key, hash_u64(key, 7));
        assert_int_equal(set_put(&shared.set, &items[key]->entry), ERR_OK);
    }
    pthread_t readers[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&readers[i], NULL, look_on, &shared);
    struct check_random random;
    check_random_init(&random, check_random_seed(4));
    for (int step = 0; step < 60000 || atomic_load_explicit(&shared.lookups, memory_order_relaxed) == 0; step++) {
        bool grow = (step / 6000) % 2 == 0;
        uint64_t key = STEADY + check_random_below(&random, 8192 - STEADY);
        if (items[key] == NULL && grow) {
            items[key] = item_new(key, hash_u64(key, 7));
            assert_int_equal(set_put(&shared.set, &items[key]->entry), ERR_OK);
        } else if (items[key] != NULL && !grow) {
            set_remove(&shared.set, &items[key]->entry);
            epoch_defer_free(shared.epoch, items[key]);
            items[key] = NULL;
        }
        if (step % 32 == 0)
            epoch_poll(shared.epoch);
    }
    atomic_store_explicit(&shared.stop, true, memory_order_relaxed);
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    for (uint64_t key = 0; key < 8192; key++)
        free(items[key]);
    set_deinit(&shared.set);
    epoch_free(shared.epoch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_a_plain_array_finds),
        cmocka_unit_test(survives_hashes_that_collide),
        cmocka_unit_test(nothing_is_freed_under_a_reader),
        cmocka_unit_test(readers_never_miss_what_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
