#include "broker/durable/checkpoint_delta.h"

#include "common/check.h"
#include "common/hash.h"

#include <stdlib.h>

#define BLOCK_SIZE (((size_t)64 << 10) - sizeof(struct delta_block))
#define BUCKETS_MIN 64u
#define DEAD_MIN 4096 /* entries without message that are worth taking out */

struct delta_block {
    struct delta_block *next, *before; /* before: of message blocks alone */
    size_t used, size;
    size_t live; /* messages in it that are not done */
    uint64_t bytes[];
};

/* --- memory -------------------------------------------------------------------------------------------------------------------------- */

enum err delta_grow(void **items, size_t *capacity, size_t count, size_t item_size)
{
    if (count < *capacity)
        return ERR_OK;
    size_t wanted = *capacity ? *capacity * 2 : 64;
    void *grown = realloc(*items, wanted * item_size);
    if (!grown)
        return ERR_NOMEM;
    *items = grown;
    *capacity = wanted;
    return ERR_OK;
}

/* A block with room for `size`: of the usual size, or one for something large alone. */
static struct delta_block *take_block(struct delta *delta, size_t size)
{
    struct delta_block *block = delta->spare_blocks;
    if (size > BLOCK_SIZE || !block) {
        size = size > BLOCK_SIZE ? size : BLOCK_SIZE;
        block = (struct delta_block *)malloc(sizeof *block + size);
        if (!block)
            return NULL;
    } else {
        size = BLOCK_SIZE;
        delta->spare_blocks = block->next;
        delta->spare_count--;
    }
    *block = (struct delta_block){.size = size};
    delta->block_count += size == BLOCK_SIZE;
    return block;
}

static void give_block(struct delta *delta, struct delta_block *block)
{
    delta->bytes -= block->used;
    if (block->size != BLOCK_SIZE) {
        free(block);
        return;
    }
    delta->block_count--;
    delta->spare_count++;
    block->next = delta->spare_blocks;
    delta->spare_blocks = block;
}

static void *block_alloc(struct delta *delta, struct delta_block *block, size_t size)
{
    uint8_t *at = (uint8_t *)block->bytes + block->used;
    block->used += size;
    delta->bytes += size;
    return at;
}

void *delta_alloc(struct delta *delta, size_t size)
{
    size = align_up(size ? size : 1, 8);
    struct delta_block *block = delta->blocks;
    if (!block || block->size - block->used < size) {
        block = take_block(delta, size);
        if (!block)
            return NULL;
        block->next = delta->blocks;
        delta->blocks = block;
    }
    return block_alloc(delta, block, size);
}

bool delta_is_empty(const struct delta *delta)
{
    return delta->message_count == 0 && delta->ack_count == 0 && delta->session_count == 0 && delta->retained_count == 0 &&
           delta->run_count == 0;
}

static struct delta_message *alloc_message(struct delta *delta, struct delta_block **block_out, size_t size)
{
    size = align_up(size, 8);
    struct delta_block *block = delta->last_message_block;
    if (!block || block->size - block->used < size) {
        block = take_block(delta, size);
        if (!block)
            return NULL;
        block->before = delta->last_message_block;
        *(block->before ? &block->before->next : &delta->message_blocks) = block;
        delta->last_message_block = block;
    }
    block->live++;
    *block_out = block;
    return (struct delta_message *)block_alloc(delta, block, size);
}

static void free_message(struct delta *delta, struct delta_entry *entry)
{
    struct delta_block *block = entry->block;
    entry->message = NULL;
    delta->dead_count++;
    if (--block->live > 0)
        return;
    *(block->before ? &block->before->next : &delta->message_blocks) = block->next;
    *(block->next ? &block->next->before : &delta->last_message_block) = block->before;
    give_block(delta, block);
}

static void give_blocks(struct delta *delta, struct delta_block *block)
{
    for (struct delta_block *next; block; block = next) {
        next = block->next;
        give_block(delta, block);
    }
}

/* What the array had room for stays, unless it was more than eight times what was used. */
static void clear_array(void **items, size_t *count, size_t *capacity)
{
    if (*capacity / 8 > *count) {
        free(*items);
        *items = NULL;
        *capacity = 0;
    }
    *count = 0;
}

void delta_clear(struct delta *delta)
{
    for (struct stored_session *session = delta->first_session; session; session = session->later)
        stored_session_clear(session);
    free(delta->session_buckets);
    free(delta->retained_buckets);
    /* A need that was once goes by halves. */
    delta->blocks_wanted = delta->block_count > delta->blocks_wanted / 2 ? delta->block_count : delta->blocks_wanted / 2;
    give_blocks(delta, delta->blocks);
    give_blocks(delta, delta->message_blocks);
    struct delta kept = *delta;
    *delta = (struct delta){.blocks_wanted = kept.blocks_wanted, .spare_blocks = kept.spare_blocks, .spare_count = kept.spare_count};
    while (delta->spare_count > delta->blocks_wanted) {
        struct delta_block *block = delta->spare_blocks;
        delta->spare_blocks = block->next;
        delta->spare_count--;
        free(block);
    }
    clear_array((void **)&kept.messages, &kept.message_count, &kept.message_capacity);
    clear_array((void **)&kept.acks, &kept.ack_count, &kept.ack_capacity);
    clear_array((void **)&kept.runs, &kept.run_count, &kept.run_capacity);
    delta->messages = kept.messages;
    delta->message_capacity = kept.message_capacity;
    delta->acks = kept.acks;
    delta->ack_capacity = kept.ack_capacity;
    delta->runs = kept.runs;
    delta->run_capacity = kept.run_capacity;
}

static void free_spare_blocks(struct delta *delta)
{
    while (delta->spare_blocks) {
        struct delta_block *next = delta->spare_blocks->next;
        free(delta->spare_blocks);
        delta->spare_blocks = next;
    }
    delta->spare_count = delta->blocks_wanted = 0;
}

static void free_array(void **items, size_t count, size_t *capacity)
{
    if (count > 0)
        return;
    free(*items);
    *items = NULL;
    *capacity = 0;
}

void delta_trim(struct delta *delta)
{
    free_spare_blocks(delta);
    free_array((void **)&delta->messages, delta->message_count, &delta->message_capacity);
    free_array((void **)&delta->acks, delta->ack_count, &delta->ack_capacity);
    free_array((void **)&delta->runs, delta->run_count, &delta->run_capacity);
}

size_t delta_spare_bytes(const struct delta *delta)
{
    return delta->spare_count * BLOCK_SIZE + (delta->message_capacity - delta->message_count) * sizeof *delta->messages +
           (delta->ack_capacity - delta->ack_count) * sizeof *delta->acks + (delta->run_capacity - delta->run_count) * sizeof *delta->runs;
}

void delta_free(struct delta *delta)
{
    delta_clear(delta);
    delta_trim(delta);
    *delta = (struct delta){0};
}

/* --- messages ------------------------------------------------------------------------------------------------------------------------ */

/* Take out what is done when it is more than half: the array would grow with all that came and went. */
static void sweep_messages(struct delta *delta)
{
    if (delta->dead_count < DEAD_MIN || delta->dead_count < delta->message_count / 2)
        return;
    size_t kept = 0;
    for (size_t i = 0; i < delta->message_count; i++)
        if (delta->messages[i].message)
            delta->messages[kept++] = delta->messages[i];
    delta->bytes -= (delta->message_count - kept) * sizeof *delta->messages;
    delta->message_count = kept;
    delta->dead_count = 0;
}

static size_t body_size_of(const struct delta_body *body)
{
    return body->rec ? record_size(body->rec) : body->parts[0].size + body->parts[1].size;
}

static void put_body(uint8_t *at, const struct delta_body *body, size_t size)
{
    if (body->rec) {
        record_encode(at, body->rec);
        return;
    }
    memcpy(at, body->parts[0].data, body->parts[0].size);
    memcpy(at + body->parts[0].size, body->parts[1].data, body->parts[1].size);
    store_le32(at, (uint32_t)size);
}

enum err delta_put_message(struct delta *delta, uint64_t sequence, const struct record *rec, const struct delta_body *body,
                           const struct delta_want *wants, uint32_t want_count, bool is_retained)
{
    CHECK(delta->message_count == 0 || delta->messages[delta->message_count - 1].sequence < sequence);
    sweep_messages(delta);
    enum err err = delta_grow((void **)&delta->messages, &delta->message_capacity, delta->message_count, sizeof *delta->messages);
    if (err)
        return err;
    size_t wants_size = want_count * sizeof *wants, body_size = body_size_of(body);
    size_t recipients_size = want_count ? rec->recipients.size : 0;
    struct delta_block *block;
    struct delta_message *message = alloc_message(delta, &block, sizeof *message + wants_size + recipients_size + 1 + body_size);
    if (!message)
        return ERR_NOMEM;
    *message = (struct delta_message){
        .want_count = want_count,
        .outstanding = want_count,
        .recipients_size = (uint32_t)recipients_size,
        .body_size = (uint32_t)body_size,
        .content_bytes = (uint32_t)(rec->topic.size + rec->properties.size + rec->payload.size),
        .is_retained = is_retained,
    };
    uint8_t *at = (uint8_t *)(message->wants + want_count);
    if (want_count) {
        memcpy(message->wants, wants, wants_size);
        memcpy(at, rec->recipients.data, recipients_size);
    }
    at[recipients_size] = 0;
    put_body(at + recipients_size + 1, body, body_size);
    delta->messages[delta->message_count++] =
        (struct delta_entry){sequence, message, block, want_count == 1 && !is_retained ? wants[0].session : 0};
    delta->bytes += sizeof *delta->messages;
    return ERR_OK;
}

struct span delta_message_recipients(const struct delta_message *message)
{
    return span_of(message->wants + message->want_count, message->recipients_size);
}

struct span delta_message_row(const struct delta_message *message)
{
    struct span recipients = delta_message_recipients(message);
    return span_of(recipients.data + recipients.size, 1 + (size_t)message->body_size);
}

struct span delta_message_body(const struct delta_message *message)
{
    struct span row = delta_message_row(message);
    return span_of(row.data + 1, row.size - 1);
}

static struct delta_entry *find_entry(struct delta *delta, uint64_t sequence)
{
    size_t low = delta->found + 1, high = delta->message_count;
    if (low < high && delta->messages[low].sequence == sequence) {
        delta->found = low;
        return &delta->messages[low];
    }
    low = 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (delta->messages[middle].sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == delta->message_count || delta->messages[low].sequence != sequence)
        return NULL;
    delta->found = low;
    return &delta->messages[low];
}

bool delta_end_want(struct delta *delta, uint64_t sequence, uint64_t session)
{
    struct delta_entry *entry = find_entry(delta, sequence);
    struct delta_message *message = entry ? entry->message : NULL;
    if (!message || (entry->only != 0 && entry->only != session))
        return false;
    if (entry->only != 0) {
        free_message(delta, entry);
        return true;
    }
    uint32_t low = 0, high = message->want_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (message->wants[middle].session < session)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == message->want_count || message->wants[low].session != session || message->wants[low].at == DELTA_WANT_DONE)
        return false;
    message->wants[low].at = DELTA_WANT_DONE;
    if (--message->outstanding > 0 || message->is_retained)
        return false;
    free_message(delta, entry);
    return true;
}

void delta_end_retained(struct delta *delta, uint64_t sequence)
{
    struct delta_entry *entry = find_entry(delta, sequence);
    if (!entry || !entry->message)
        return;
    entry->message->is_retained = false;
    if (entry->message->outstanding == 0)
        free_message(delta, entry);
}

enum err delta_put_ack(struct delta *delta, uint64_t sequence, uint64_t session)
{
    enum err err = delta_grow((void **)&delta->acks, &delta->ack_capacity, delta->ack_count, sizeof *delta->acks);
    if (err)
        return err;
    delta->acks[delta->ack_count++] = (struct delta_ack){sequence, session};
    delta->bytes += sizeof *delta->acks;
    return ERR_OK;
}

void delta_drop_acks(struct delta *delta, size_t count)
{
    CHECK(count <= delta->ack_count);
    delta->ack_count -= count;
    delta->bytes -= count * sizeof *delta->acks;
    if (count > 0 && delta->ack_count > 0)
        memmove(delta->acks, delta->acks + count, delta->ack_count * sizeof *delta->acks);
}

enum err delta_put_run(struct delta *delta, uint64_t session, uint64_t first, struct span positions)
{
    enum err err = delta_grow((void **)&delta->runs, &delta->run_capacity, delta->run_count, sizeof *delta->runs);
    if (err)
        return err;
    uint8_t *copy = NULL;
    if (positions.size) {
        copy = (uint8_t *)delta_alloc(delta, positions.size);
        if (!copy)
            return ERR_NOMEM;
        memcpy(copy, positions.data, positions.size);
    }
    delta->runs[delta->run_count++] = (struct delta_run){session, first, span_of(copy, positions.size)};
    delta->bytes += sizeof *delta->runs;
    return ERR_OK;
}

/* --- sessions ------------------------------------------------------------------------------------------------------------------------ */

static size_t session_bucket(const struct delta *delta, uint64_t number)
{
    return (size_t)hash_u64(number, 0) & (delta->session_bucket_count - 1);
}

struct stored_session *delta_find_session(const struct delta *delta, uint64_t number)
{
    if (delta->session_count == 0)
        return NULL;
    struct stored_session *session = delta->session_buckets[session_bucket(delta, number)];
    while (session && session->number != number)
        session = session->next;
    return session;
}

/* Twice as many buckets. */
static enum err grow_sessions(struct delta *delta)
{
    struct stored_session **old = delta->session_buckets;
    size_t old_count = delta->session_bucket_count;
    size_t count = old_count ? 2 * old_count : BUCKETS_MIN;
    struct stored_session **buckets = (struct stored_session **)calloc(count, sizeof(struct stored_session *));
    if (!buckets)
        return ERR_NOMEM;
    delta->session_buckets = buckets;
    delta->session_bucket_count = count;
    for (size_t b = 0; b < old_count; b++) {
        for (struct stored_session *session = old[b], *next; session; session = next) {
            next = session->next;
            struct stored_session **bucket = &buckets[session_bucket(delta, session->number)];
            session->next = *bucket;
            *bucket = session;
        }
    }
    free(old);
    return ERR_OK;
}

enum err delta_add_session(struct delta *delta, struct stored_session **session_out, uint64_t number)
{
    enum err err = delta->session_count >= delta->session_bucket_count ? grow_sessions(delta) : ERR_OK;
    if (err)
        return err;
    struct stored_session *session = (struct stored_session *)delta_alloc(delta, sizeof *session);
    if (!session)
        return ERR_NOMEM;
    struct stored_session **bucket = &delta->session_buckets[session_bucket(delta, number)];
    *session = (struct stored_session){.next = *bucket, .number = number};
    *bucket = session;
    *(delta->last_session ? &delta->last_session->later : &delta->first_session) = session;
    delta->last_session = session;
    delta->session_count++;
    *session_out = session;
    return ERR_OK;
}

static int compare_sessions(const void *a, const void *b)
{
    uint64_t x = (*(struct stored_session *const *)a)->number, y = (*(struct stored_session *const *)b)->number;
    return (x > y) - (x < y);
}

enum err delta_list_sessions(const struct delta *delta, struct stored_session ***sessions_out)
{
    struct stored_session **sessions = (struct stored_session **)malloc((delta->session_count + 1) * sizeof(struct stored_session *));
    if (!sessions)
        return ERR_NOMEM;
    size_t count = 0;
    uint64_t last = 0;
    bool is_sorted = true;
    for (struct stored_session *session = delta->first_session; session; session = session->later) {
        is_sorted &= session->number >= last;
        last = session->number;
        sessions[count++] = session;
    }
    if (!is_sorted)
        qsort(sessions, count, sizeof *sessions, compare_sessions);
    *sessions_out = sessions;
    return ERR_OK;
}

/* --- retained ------------------------------------------------------------------------------------------------------------------------ */

static size_t retained_bucket(const struct delta *delta, struct topic_hash hash)
{
    return (size_t)(hash.low >> 8) & (delta->retained_bucket_count - 1);
}

struct delta_retained *delta_find_retained(const struct delta *delta, struct topic_hash hash, struct span topic)
{
    if (delta->retained_count == 0)
        return NULL;
    struct delta_retained *retained = delta->retained_buckets[retained_bucket(delta, hash)];
    while (retained && (retained->hash.high != hash.high || retained->hash.low != hash.low || !span_equal(retained->topic, topic)))
        retained = retained->next;
    return retained;
}

static enum err grow_retained(struct delta *delta)
{
    struct delta_retained **old = delta->retained_buckets;
    size_t old_count = delta->retained_bucket_count;
    size_t count = old_count ? 2 * old_count : BUCKETS_MIN;
    struct delta_retained **buckets = (struct delta_retained **)calloc(count, sizeof(struct delta_retained *));
    if (!buckets)
        return ERR_NOMEM;
    delta->retained_buckets = buckets;
    delta->retained_bucket_count = count;
    for (size_t b = 0; b < old_count; b++) {
        for (struct delta_retained *retained = old[b], *next; retained; retained = next) {
            next = retained->next;
            struct delta_retained **bucket = &buckets[retained_bucket(delta, retained->hash)];
            retained->next = *bucket;
            *bucket = retained;
        }
    }
    free(old);
    return ERR_OK;
}

enum err delta_add_retained(struct delta *delta, struct delta_retained **retained_out, struct topic_hash hash, struct span topic)
{
    enum err err = delta->retained_count >= delta->retained_bucket_count ? grow_retained(delta) : ERR_OK;
    if (err)
        return err;
    struct delta_retained *retained = (struct delta_retained *)delta_alloc(delta, sizeof *retained + topic.size);
    if (!retained)
        return ERR_NOMEM;
    uint8_t *copy = (uint8_t *)(retained + 1);
    memcpy(copy, topic.data, topic.size);
    struct delta_retained **bucket = &delta->retained_buckets[retained_bucket(delta, hash)];
    *retained = (struct delta_retained){.next = *bucket, .hash = hash, .topic = span_of(copy, topic.size)};
    *bucket = retained;
    delta->retained_count++;
    *retained_out = retained;
    return ERR_OK;
}
