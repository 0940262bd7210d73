#include "broker/session/session_table.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/hash.h"

#define BUCKETS_MIN 16

/* --- a linear hash table ------------------------------------------------------------------------------------------------------------ */

static struct session **bucket_at(const struct session_buckets *buckets, uint32_t index)
{
    return &buckets->pages[index / SESSION_TABLE_PAGE][index % SESSION_TABLE_PAGE];
}

static struct session **bucket_of(const struct session_buckets *buckets, uint32_t hash)
{
    uint32_t index = hash & (buckets->level - 1);
    return bucket_at(buckets, index < buckets->split ? hash & (buckets->level * 2 - 1) : index);
}

static bool buckets_page_add(struct session_buckets *buckets)
{
    /* The page directory doubles; it holds a pointer for a thousand buckets. */
    if ((buckets->page_count & (buckets->page_count - 1)) == 0) {
        size_t capacity = buckets->page_count ? buckets->page_count * 2u : 1u;
        struct session ***grown = realloc(buckets->pages, capacity * sizeof *grown);
        if (!grown)
            return false;
        buckets->pages = grown;
    }
    struct session **page = calloc(SESSION_TABLE_PAGE, sizeof(struct session *));
    if (!page)
        return false;
    buckets->pages[buckets->page_count++] = page;
    return true;
}

static void buckets_deinit(struct session_buckets *buckets)
{
    for (uint32_t page = 0; page < buckets->page_count; page++)
        free(buckets->pages[page]);
    free(buckets->pages);
}

/* Split one bucket: its sessions go by one more bit of their hash. */
static void buckets_grow(struct session_buckets *buckets)
{
    if (buckets->count == buckets->page_count * SESSION_TABLE_PAGE && !buckets_page_add(buckets))
        return; /* longer chains, nothing worse */
    struct session **from = bucket_at(buckets, buckets->split), **to = bucket_at(buckets, buckets->split + buckets->level);
    struct session *sess = *from;
    *from = *to = NULL;
    buckets->count++;
    while (sess) {
        struct session *next = *buckets->link(sess);
        struct session **head = buckets->hash(sess, buckets->hash_key) & buckets->level ? to : from;
        *buckets->link(sess) = *head;
        *head = sess;
        sess = next;
    }
    if (++buckets->split == buckets->level) {
        buckets->level *= 2;
        buckets->split = 0;
    }
}

/* As if it had grown to this while nothing was in. */
static void buckets_reserve(struct session_buckets *buckets, uint32_t count)
{
    while (buckets->page_count * (uint64_t)SESSION_TABLE_PAGE < count && buckets_page_add(buckets)) {
    }
    if (count > buckets->page_count * SESSION_TABLE_PAGE)
        count = buckets->page_count * SESSION_TABLE_PAGE;
    if (count <= buckets->count)
        return;
    while (buckets->level <= count / 2)
        buckets->level *= 2;
    buckets->split = count - buckets->level;
    buckets->count = count;
}

/* Undo the last split. */
static void buckets_shrink(struct session_buckets *buckets)
{
    if (buckets->split == 0) {
        buckets->level /= 2;
        buckets->split = buckets->level;
    }
    buckets->split--;
    buckets->count--;
    struct session **tail = bucket_at(buckets, buckets->split), **source = bucket_at(buckets, buckets->split + buckets->level);
    while (*tail)
        tail = buckets->link(*tail);
    *tail = *source;
    *source = NULL;
}

/* Put a session in; `count` are there already. */
static void buckets_add(struct session_buckets *buckets, struct session *sess, uint32_t count)
{
    if (count >= buckets->count)
        buckets_grow(buckets);
    struct session **head = bucket_of(buckets, buckets->hash(sess, buckets->hash_key));
    *buckets->link(sess) = *head;
    *head = sess;
}

/* Take a session out; `count` are left. */
static void buckets_remove(struct session_buckets *buckets, const struct session *sess, uint32_t count)
{
    struct session **place = bucket_of(buckets, buckets->hash(sess, buckets->hash_key));
    while (*place != sess) {
        CHECK(*place);
        place = buckets->link(*place);
    }
    *place = *buckets->link(*place);
    if (buckets->count > BUCKETS_MIN && count < buckets->count / 2)
        buckets_shrink(buckets);
}

/* --- the two of them ---------------------------------------------------------------------------------------------------------------- */

static struct session **client_id_link(struct session *sess) { return &sess->next_by_client_id; }
static struct session **number_link(struct session *sess) { return &sess->next_by_number; }

static uint32_t hash_client_id(struct span client_id, uint64_t hash_key) { return (uint32_t)(hash_span(client_id, hash_key) >> 16); }
static uint32_t hash_number(uint64_t number, uint64_t hash_key) { return (uint32_t)hash_u64(number, hash_key); }

static uint32_t client_id_hash(const struct session *sess, uint64_t hash_key)
{
    (void)hash_key; /* kept: it is the dearer one */
    return sess->hash;
}
static uint32_t number_hash(const struct session *sess, uint64_t hash_key) { return hash_number(sess->number, hash_key); }

enum err session_table_init(struct session_table *table, uint64_t hash_key)
{
    struct session_buckets buckets = {.hash_key = hash_key, .level = BUCKETS_MIN, .count = BUCKETS_MIN};
    *table = (struct session_table){.by_client_id = buckets, .by_number = buckets};
    table->by_client_id.link = client_id_link;
    table->by_client_id.hash = client_id_hash;
    table->by_number.link = number_link;
    table->by_number.hash = number_hash;
    if (buckets_page_add(&table->by_client_id) && buckets_page_add(&table->by_number))
        return ERR_OK;
    buckets_deinit(&table->by_client_id);
    buckets_deinit(&table->by_number);
    return ERR_NOMEM;
}

void session_table_reserve(struct session_table *table, uint32_t count)
{
    CHECK(table->count == 0);
    buckets_reserve(&table->by_client_id, count);
    buckets_reserve(&table->by_number, count);
}

void session_table_deinit(struct session_table *table)
{
    for (uint32_t i = 0; i < table->by_number.count; i++) {
        for (struct session *sess = *bucket_at(&table->by_number, i), *next; sess; sess = next) {
            next = sess->next_by_number;
            session_deinit(sess);
            free(sess);
        }
    }
    buckets_deinit(&table->by_client_id);
    buckets_deinit(&table->by_number);
    *table = (struct session_table){0};
}

struct session *session_table_bucket(const struct session_table *table, uint32_t index) { return *bucket_at(&table->by_number, index); }

struct session *session_table_find(const struct session_table *table, struct span client_id)
{
    uint32_t hash = hash_client_id(client_id, table->by_client_id.hash_key);
    for (struct session *sess = *bucket_of(&table->by_client_id, hash); sess; sess = sess->next_by_client_id)
        if (sess->hash == hash && span_equal(session_client_id(sess), client_id))
            return sess;
    return NULL;
}

struct session *session_table_find_number(const struct session_table *table, uint64_t number)
{
    struct session *sess = *bucket_of(&table->by_number, hash_number(number, table->by_number.hash_key));
    while (sess && sess->number != number)
        sess = sess->next_by_number;
    return sess;
}

void session_table_fetch(const struct session_table *table, uint64_t number, int step)
{
    struct session **bucket = bucket_of(&table->by_number, hash_number(number, table->by_number.hash_key));
    if (step == 0) {
        __builtin_prefetch(bucket);
    } else if (*bucket) { /* where the table's links and the number are, and behind them what is changed */
        __builtin_prefetch(*bucket);
        __builtin_prefetch(&(*bucket)->queue, 1);
    }
}

struct session *session_table_add(struct session_table *table, struct span client_id, uint64_t number)
{
    CHECK(client_id.size > 0);
    CHECK(client_id.size <= UINT16_MAX);
    DCHECK(session_table_find(table, client_id) == NULL);
    DCHECK(session_table_find_number(table, number) == NULL);
    struct session *sess = calloc(1, sizeof *sess + client_id.size);
    if (!sess)
        return NULL;
    sess->number = number;
    sess->client_id_size = (uint16_t)client_id.size;
    memcpy(sess->client_id, client_id.data, client_id.size);
    sess->hash = hash_client_id(client_id, table->by_client_id.hash_key);
    buckets_add(&table->by_client_id, sess, table->count);
    buckets_add(&table->by_number, sess, table->count);
    table->count++;
    return sess;
}

void session_table_remove(struct session_table *table, struct session *sess)
{
    CHECK(!timer_node_is_set(&sess->timer));
    table->count--;
    buckets_remove(&table->by_client_id, sess, table->count);
    buckets_remove(&table->by_number, sess, table->count);
    session_deinit(sess);
    free(sess);
}
