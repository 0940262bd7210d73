#include "sink/store/series.h"

#include <stdlib.h>

#include "common/clock.h"
#include "common/hash.h"

/* Open addressing with linear probing, at most 3/4 full; key 0 is an empty slot, so a hash of 0 becomes 1. Nothing is ever removed. */
struct slot {
    uint64_t key;
    int64_t value;
};

struct table {
    struct slot *slots;
    size_t mask; /* slot count - 1 */
    int64_t used;
};

struct series {
    struct series_limits limits;
    uint64_t hash_seed;
    struct table devices; /* value: metrics of the device */
    struct table series;
    int64_t tokens_ns; /* of the bucket, in nanoseconds: one new series costs an hour / max */
    int64_t tokens_at_ns;
};

static bool table_init(struct table *table, size_t slot_count)
{
    table->slots = calloc(slot_count, sizeof *table->slots);
    table->mask = slot_count - 1;
    return table->slots != NULL;
}

/* The slot of `key`, or the empty one where it would go. */
static struct slot *table_seek(const struct table *table, uint64_t key)
{
    size_t at = key & table->mask;
    while (table->slots[at].key != 0 && table->slots[at].key != key)
        at = (at + 1) & table->mask;
    return &table->slots[at];
}

static bool table_reserve(struct table *table)
{
    if ((size_t)table->used * 4 < (table->mask + 1) * 3)
        return true;
    struct table larger = {.used = table->used};
    if (!table_init(&larger, (table->mask + 1) * 2))
        return false;
    for (size_t i = 0; i <= table->mask; i++) {
        if (table->slots[i].key != 0)
            *table_seek(&larger, table->slots[i].key) = table->slots[i];
    }
    free(table->slots);
    *table = larger;
    return true;
}

struct series *series_new(const struct series_limits *limits, uint64_t hash_seed)
{
    struct series *series = calloc(1, sizeof *series);
    if (!series)
        return NULL;
    series->limits = *limits;
    series->hash_seed = hash_seed;
    series->tokens_ns = NS_PER_HOUR;
    series->tokens_at_ns = INT64_MIN;
    if (table_init(&series->devices, 1024) && table_init(&series->series, 4096))
        return series;
    series_free(series);
    return NULL;
}

void series_free(struct series *series)
{
    if (!series)
        return;
    free(series->devices.slots);
    free(series->series.slots);
    free(series);
}

static uint64_t key_of(uint64_t hash) { return hash ? hash : 1; }

static void count_up(struct table *table) { __atomic_store_n(&table->used, table->used + 1, __ATOMIC_RELAXED); }

/* Both are new or known after it; false without memory. */
static bool insert(struct series *series, struct series_device *device, uint64_t series_key)
{
    if (!table_reserve(&series->devices) || !table_reserve(&series->series))
        return false;
    struct slot *device_slot = table_seek(&series->devices, device->hash);
    if (device_slot->key == 0) {
        *device_slot = (struct slot){.key = device->hash};
        count_up(&series->devices);
    }
    struct slot *series_slot = table_seek(&series->series, series_key);
    if (series_slot->key == 0) {
        *series_slot = (struct slot){.key = series_key};
        count_up(&series->series);
        device_slot->value++;
    }
    device->metric_count = device_slot->value;
    device->is_known = true;
    return true;
}

enum err series_note(struct series *series, struct span device, struct span metric)
{
    struct series_device handle = {.hash = key_of(hash_span(device, series->hash_seed))};
    return insert(series, &handle, key_of(hash_span(metric, handle.hash))) ? ERR_OK : ERR_NOMEM;
}

enum reject series_admit_device(struct series *series, struct series_device *device_out, struct span device)
{
    uint64_t key = key_of(hash_span(device, series->hash_seed));
    const struct slot *slot = table_seek(&series->devices, key);
    *device_out = (struct series_device){.hash = key, .metric_count = slot->value, .is_known = slot->key != 0};
    if (!device_out->is_known && series->devices.used >= series->limits.devices_max)
        return REJECT_DEVICE_CAP;
    return REJECT_NONE;
}

static bool take_token(struct series *series, int64_t now_ns)
{
    int64_t rate = series->limits.new_series_per_hour_max;
    if (rate == INT64_MAX)
        return true;
    if (rate <= 0)
        return false;
    int64_t cost_ns = NS_PER_HOUR / rate > 0 ? NS_PER_HOUR / rate : 1;
    if (series->tokens_at_ns != INT64_MIN && now_ns > series->tokens_at_ns) {
        int64_t gained = now_ns - series->tokens_at_ns;
        series->tokens_ns = gained >= NS_PER_HOUR - series->tokens_ns ? NS_PER_HOUR : series->tokens_ns + gained;
    }
    if (series->tokens_at_ns == INT64_MIN || now_ns > series->tokens_at_ns)
        series->tokens_at_ns = now_ns;
    if (series->tokens_ns < cost_ns)
        return false;
    series->tokens_ns -= cost_ns;
    return true;
}

enum reject series_admit_metric(struct series *series, struct series_device *device, struct span metric, int64_t now_ns)
{
    uint64_t key = key_of(hash_span(metric, device->hash));
    if (table_seek(&series->series, key)->key != 0)
        return REJECT_NONE;
    if (device->metric_count >= series->limits.metrics_per_device_max)
        return REJECT_METRIC_CAP;
    if (!take_token(series, now_ns))
        return REJECT_SERIES_RATE;
    return insert(series, device, key) ? REJECT_NONE : REJECT_NO_MEMORY;
}

int64_t series_device_count(const struct series *series) { return __atomic_load_n(&series->devices.used, __ATOMIC_RELAXED); }

int64_t series_count(const struct series *series) { return __atomic_load_n(&series->series.used, __ATOMIC_RELAXED); }
