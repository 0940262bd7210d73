#include "broker/durable/kv.h"

#include "common/check.h"
#include "common/crc32c.h"

#include <stdio.h>
#include <string.h>

#define CRC_SIZE 4

/* Over the tree as well, and over the key: a value that turns up under another name is as wrong as one with another content. */
static uint32_t crc_of(enum kv_tree tree, struct span key, struct span value)
{
    uint8_t number = (uint8_t)tree;
    return crc32c(crc32c(crc32c(0, &number, 1), key.data, key.size), value.data, value.size);
}

bool kv_value_is_whole(enum kv_tree tree, struct span key, struct span stored)
{
    return stored.size >= CRC_SIZE &&
           crc_of(tree, key, span_of(stored.data, stored.size - CRC_SIZE)) == load_le32(stored.data + stored.size - CRC_SIZE);
}

/* Take the CRC off what was stored, if it is right. */
static enum err check_value(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span stored, struct span *value_out)
{
    struct span *checked = &txn->places[tree].checked;
    *value_out = span_of(NULL, 0);
    if (stored.size < CRC_SIZE)
        return ERR_CORRUPT;
    struct span value = span_of(stored.data, stored.size - CRC_SIZE);
    bool is_known = !txn->is_write && stored.data == checked->data && stored.size == checked->size;
    if (!is_known && crc_of(tree, key, value) != load_le32(stored.data + value.size))
        return ERR_CORRUPT;
    *checked = stored;
    *value_out = value;
    return ERR_OK;
}

static void check_call(const struct kv_txn *txn, enum kv_tree tree)
{
    CHECK(txn);
    CHECK((unsigned)tree < KV_TREE_COUNT);
}

static void check_key(struct span key)
{
    CHECK(key.size >= 1);
    CHECK(key.size <= KV_KEY_MAX);
}

enum err kv_begin(struct kv *kv, struct kv_txn **txn_out, bool is_write)
{
    struct kv_txn *txn = NULL;
    enum err err = kv->ops->begin(kv, &txn, is_write);
    if (err)
        return err;
    txn->kv = kv;
    txn->is_write = is_write;
    *txn_out = txn;
    return ERR_OK;
}

enum err kv_commit(struct kv_txn *txn)
{
    enum err failed = txn->failed;
    if (!failed && txn->is_write)
        return txn->kv->ops->commit(txn);
    txn->kv->ops->abort(txn);
    return failed;
}

void kv_abort(struct kv_txn *txn)
{
    if (txn)
        txn->kv->ops->abort(txn);
}

enum err kv_get(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *value_out)
{
    check_call(txn, tree);
    check_key(key);
    struct span stored;
    *value_out = span_of(NULL, 0);
    enum err err = txn->kv->ops->get(txn, tree, key, &stored);
    return err ? err : check_value(txn, tree, key, stored, value_out);
}

/* --- writing ------------------------------------------------------------------------------------------------------------------------- */

/* A key that was borrowed from the transaction would change under the hands of an implementation that moves its pages: work on a copy. */
struct key_copy {
    uint8_t data[KV_KEY_MAX];
};

static struct span copy_key(struct key_copy *copy, struct span key)
{
    check_key(key);
    memcpy(copy->data, key.data, key.size);
    return span_of(copy->data, key.size);
}

enum err kv_put(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span value)
{
    check_call(txn, tree);
    CHECK(txn->is_write);
    CHECK(value.size <= KV_VALUE_MAX);
    struct key_copy copy;
    key = copy_key(&copy, key);
    if (txn->failed)
        return txn->failed;
    uint8_t crc[CRC_SIZE];
    store_le32(crc, crc_of(tree, key, value));
    txn->places[tree].is_stale = true;
    return txn->failed = txn->kv->ops->put(txn, tree, key, value, crc);
}

enum err kv_del(struct kv_txn *txn, enum kv_tree tree, struct span key)
{
    check_call(txn, tree);
    CHECK(txn->is_write);
    struct key_copy copy;
    key = copy_key(&copy, key);
    if (txn->failed)
        return txn->failed;
    txn->places[tree].is_stale = true;
    enum err err = txn->kv->ops->del(txn, tree, key);
    return txn->failed = err == ERR_NOTFOUND ? ERR_OK : err;
}

/* --- walks --------------------------------------------------------------------------------------------------------------------------- */

/* What an implementation answered to a step of a walk: remember the place, check the value. A key that is longer than any that we write
 * can only come from a damaged page, where nobody can tell what follows. */
static enum err on_step(struct kv_txn *txn, enum kv_tree tree, enum err err, struct span key, struct span stored, struct span *key_out,
                        struct span *value_out)
{
    struct kv_place *place = &txn->places[tree];
    if (!err && (key.size < 1 || key.size > KV_KEY_MAX))
        err = ERR_CORRUPT;
    place->is_set = !err;
    place->is_stale = false;
    *key_out = *value_out = span_of(NULL, 0);
    if (err)
        return err;
    if (txn->is_write) {
        memcpy(place->key, key.data, key.size);
        place->key_size = (uint8_t)key.size;
    }
    *key_out = key;
    return check_value(txn, tree, key, stored, value_out);
}

enum err kv_seek(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    check_call(txn, tree);
    CHECK(key.size <= KV_KEY_MAX);
    struct span found = {0}, stored = {0};
    enum err err = txn->kv->ops->seek(txn, tree, key, &found, &stored);
    return on_step(txn, tree, err, found, stored, key_out, value_out);
}

enum err kv_next(struct kv_txn *txn, enum kv_tree tree, struct span *key_out, struct span *value_out)
{
    check_call(txn, tree);
    const struct kv_ops *ops = txn->kv->ops;
    struct kv_place *place = &txn->places[tree];
    struct span found = {0}, stored = {0};
    enum err err;
    if (!place->is_set) {
        err = ERR_NOTFOUND;
    } else if (!place->is_stale) {
        err = ops->next(txn, tree, &found, &stored);
    } else {
        struct span stood_at = span_of(place->key, place->key_size);
        err = ops->seek(txn, tree, stood_at, &found, &stored);
        if (!err && span_equal(found, stood_at))
            err = ops->next(txn, tree, &found, &stored);
    }
    return on_step(txn, tree, err, found, stored, key_out, value_out);
}

enum err kv_floor(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    check_call(txn, tree);
    check_key(key);
    struct span found = {0}, stored = {0};
    enum err err = txn->kv->ops->floor(txn, tree, key, &found, &stored);
    return on_step(txn, tree, err, found, stored, key_out, value_out);
}

enum err kv_get_stats(struct kv *kv, struct kv_stats *stats_out)
{
    memset(stats_out, 0, sizeof *stats_out);
    return kv->ops->stats(kv, stats_out);
}

void kv_close(struct kv *kv)
{
    if (kv)
        kv->ops->close(kv);
}

const char *kv_tree_name(enum kv_tree tree)
{
    switch (tree) {
    case KV_META:
        return "meta";
    case KV_SESSIONS:
        return "sessions";
    case KV_RECIPIENTS:
        return "recipients";
    case KV_BODIES:
        return "bodies";
    case KV_HOLDERS:
        return "holders";
    case KV_RUNS:
        return "runs";
    case KV_RETAINED:
        return "retained";
    case KV_TREE_COUNT:
        break;
    }
    return "unknown";
}

void kv_key_text(char text_out[KV_KEY_TEXT_SIZE], struct span key)
{
    size_t size = key.size < KV_KEY_MAX ? key.size : KV_KEY_MAX;
    for (size_t i = 0; i < size; i++)
        snprintf(text_out + 2 * i, 3, "%02x", key.data[i]);
    if (size == 0)
        memcpy(text_out, "-", 2);
}
