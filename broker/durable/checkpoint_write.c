#include "broker/durable/checkpoint_write.h"

#include "broker/durable/checkpoint_internal.h"

enum err checkpoint_write_begin(struct checkpoint_write *write_out, struct checkpoint *checkpoint)
{
    struct kv_stats stats;
    *write_out = (struct checkpoint_write){.checkpoint = checkpoint};
    checkpoint->released_count = 0;
    enum err err = kv_get_stats(checkpoint->kv, &stats);
    if (err && err != ERR_FULL)
        return err;
    write_out->has_holders = err == ERR_FULL || stats.entries[KV_HOLDERS] > 0; /* no slot to look: there may be some */
    return kv_begin(checkpoint->kv, &write_out->txn, true);
}

enum err checkpoint_write_put(struct checkpoint_write *write, enum kv_tree tree, struct span key, struct span value)
{
    write->bytes += key.size + value.size;
    return kv_put(write->txn, tree, key, value);
}

enum err checkpoint_write_holders(struct checkpoint_write *write, uint64_t sequence, uint32_t count)
{
    uint8_t key[8], value[4];
    kv_key_u64(key, sequence);
    if (count <= 1)
        return kv_del(write->txn, KV_HOLDERS, span_of(key, 8));
    store_le32(value, count);
    return checkpoint_write_put(write, KV_HOLDERS, span_of(key, 8), span_of(value, 4));
}
