#include "broker/session/session_table.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/hash.h"

#define NONE UINT32_MAX

static struct session **bucket(const struct session_table *table, uint32_t index)
{
    return &table->buckets[index / SESSION_TABLE_PAGE][index % SESSION_TABLE_PAGE];
}

static uint32_t bucket_of(const struct session_table *table, uint32_t hash)
{
    uint32_t index = hash & (table->level - 1);
    return index < table->split ? hash & (table->level * 2 - 1) : index;
}

static struct session_slot *slot_at(const struct session_table *table, uint32_t slot)
{
    return &table->slots[slot / SESSION_TABLE_PAGE][slot % SESSION_TABLE_PAGE];
}

static bool bucket_page_add(struct session_table *table)
{
    /* The page directory doubles; it holds a pointer for a thousand buckets. */
    if ((table->bucket_page_count & (table->bucket_page_count - 1)) == 0) {
        size_t capacity = table->bucket_page_count ? table->bucket_page_count * 2u : 1u;
        struct session ***grown = realloc(table->buckets, capacity * sizeof *grown);
        if (!grown)
            return false;
        table->buckets = grown;
    }
    struct session **page = calloc(SESSION_TABLE_PAGE, sizeof(struct session *));
    if (!page)
        return false;
    table->buckets[table->bucket_page_count++] = page;
    return true;
}

enum err session_table_init(struct session_table *table, uint64_t hash_key)
{
    *table = (struct session_table){.hash_key = hash_key, .first_free = NONE, .level = 16, .bucket_count = 16};
    if (!bucket_page_add(table)) {
        free(table->buckets);
        return ERR_NOMEM;
    }
    return ERR_OK;
}

void session_table_deinit(struct session_table *table)
{
    for (uint32_t slot = 0; slot < table->slot_count; slot++) {
        struct session *sess = slot_at(table, slot)->sess;
        if (!sess)
            continue;
        session_deinit(sess);
        free(sess);
    }
    for (uint32_t page = 0; page < table->slot_page_count; page++)
        free(table->slots[page]);
    for (uint32_t page = 0; page < table->bucket_page_count; page++)
        free(table->buckets[page]);
    free(table->slots);
    free(table->buckets);
    *table = (struct session_table){.first_free = NONE};
}

static uint32_t hash_of(const struct session_table *table, struct span client_id)
{
    return (uint32_t)(hash_span(client_id, table->hash_key) >> 16);
}

struct session *session_table_find(const struct session_table *table, struct span client_id)
{
    uint32_t hash = hash_of(table, client_id);
    for (struct session *sess = *bucket(table, bucket_of(table, hash)); sess; sess = sess->next_in_bucket)
        if (sess->hash == hash && span_equal(session_client_id(sess), client_id))
            return sess;
    return NULL;
}

struct session *session_table_find_slot(const struct session_table *table, uint32_t slot, uint32_t generation)
{
    if (slot >= table->slot_count)
        return NULL;
    const struct session_slot *place = slot_at(table, slot);
    return place->generation == generation ? place->sess : NULL;
}

struct session *session_table_at(const struct session_table *table, uint32_t slot)
{
    CHECK(slot < table->slot_count);
    return slot_at(table, slot)->sess;
}

static uint32_t slot_take(struct session_table *table)
{
    uint32_t slot = table->first_free;
    if (slot != NONE) {
        table->first_free = slot_at(table, slot)->next_free;
        return slot;
    }
    if (table->slot_count > SESSION_SLOT_MAX)
        return NONE;
    if (table->slot_count == table->slot_page_count * SESSION_TABLE_PAGE) {
        if (table->slot_page_count == table->slot_page_capacity) {
            uint32_t capacity = table->slot_page_capacity ? table->slot_page_capacity * 2 : 4;
            struct session_slot **grown = realloc(table->slots, capacity * sizeof *grown);
            if (!grown)
                return NONE;
            table->slots = grown;
            table->slot_page_capacity = capacity;
        }
        struct session_slot *page = calloc(SESSION_TABLE_PAGE, sizeof *page);
        if (!page)
            return NONE;
        table->slots[table->slot_page_count++] = page;
    }
    return table->slot_count++;
}

/* Split one bucket: its sessions go by one more bit of their hash. */
static void table_grow(struct session_table *table)
{
    if (table->bucket_count == table->bucket_page_count * SESSION_TABLE_PAGE && !bucket_page_add(table))
        return; /* longer chains, nothing worse */
    uint32_t from = table->split, to = table->split + table->level;
    struct session *sess = *bucket(table, from);
    *bucket(table, from) = *bucket(table, to) = NULL;
    table->bucket_count++;
    while (sess) {
        struct session *next = sess->next_in_bucket;
        struct session **head = bucket(table, sess->hash & (table->level * 2 - 1));
        sess->next_in_bucket = *head;
        *head = sess;
        sess = next;
    }
    if (++table->split == table->level) {
        table->level *= 2;
        table->split = 0;
    }
}

struct session *session_table_add(struct session_table *table, struct span client_id)
{
    CHECK(client_id.size > 0);
    CHECK(client_id.size <= UINT16_MAX);
    DCHECK(session_table_find(table, client_id) == NULL);
    struct session *sess = calloc(1, sizeof *sess + client_id.size);
    uint32_t slot = sess ? slot_take(table) : NONE;
    if (slot == NONE) {
        free(sess);
        return NULL;
    }
    struct session_slot *place = slot_at(table, slot);
    place->sess = sess;
    place->generation++;
    if (place->generation == 0)
        place->generation = 1;
    sess->slot = slot;
    sess->generation = place->generation;
    sess->client_id_size = (uint16_t)client_id.size;
    memcpy(sess->client_id, client_id.data, client_id.size);
    sess->hash = hash_of(table, client_id);
    if (table->count >= table->bucket_count)
        table_grow(table);
    struct session **head = bucket(table, bucket_of(table, sess->hash));
    sess->next_in_bucket = *head;
    *head = sess;
    table->count++;
    return sess;
}

/* Undo the last split. */
static void table_shrink(struct session_table *table)
{
    if (table->split == 0) {
        table->level /= 2;
        table->split = table->level;
    }
    table->split--;
    table->bucket_count--;
    struct session **tail = bucket(table, table->split), **source = bucket(table, table->split + table->level);
    while (*tail)
        tail = &(*tail)->next_in_bucket;
    *tail = *source;
    *source = NULL;
}

void session_table_remove(struct session_table *table, struct session *sess)
{
    struct session_slot *place = slot_at(table, sess->slot);
    CHECK(place->sess == sess);
    CHECK(!timer_node_is_set(&sess->timer));
    struct session **link = bucket(table, bucket_of(table, sess->hash));
    while (*link != sess)
        link = &(*link)->next_in_bucket;
    *link = sess->next_in_bucket;
    place->sess = NULL;
    place->next_free = table->first_free;
    table->first_free = sess->slot;
    table->count--;
    if (table->bucket_count > 16 && table->count < table->bucket_count / 2)
        table_shrink(table);
    session_deinit(sess);
    free(sess);
}
