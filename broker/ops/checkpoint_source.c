#include "broker/ops/checkpoint_source.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

void checkpoint_source_close(struct checkpoint_source *source)
{
    if (!source)
        return;
    checkpoint_look_free(source->look);
    kv_close(source->kv);
    free(source);
}

uint64_t checkpoint_source_lost(const struct checkpoint_source *source)
{
    const struct kv_snapshot_loss *loss = kv_snapshot_loss(source->kv);
    return (loss->is_counted ? 0 : loss->page_count) + loss->entry_count + source->look->damage_count;
}

/* Returns 0, ERR_NOTFOUND (it does not say where it stands), ERR_NOMEM, ERR_IO. */
static enum err open_way(struct checkpoint_source **source_out, const struct kv_snapshot_source *way, const char *dir, bool only_meta,
                         struct errmsg *msg)
{
    struct checkpoint_source *source = (struct checkpoint_source *)calloc(1, sizeof *source);
    if (!source) {
        (void)err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
        return ERR_NOMEM;
    }
    source->way = *way;
    enum err err = kv_snapshot_open(&source->kv, dir, way, only_meta, msg);
    if (!err)
        err = checkpoint_look_kv(&source->look, source->kv, !only_meta, msg);
    if (!err && (source->look->err || source->look->state.broker_id == 0))
        err = ERR_NOTFOUND;
    if (err) {
        checkpoint_source_close(source);
        return err;
    }
    *source_out = source;
    return ERR_OK;
}

static bool is_newer(const struct checkpoint_source *a, const struct checkpoint_source *b)
{
    struct log_position left = a->look->state.cursor.position, right = b->look->state.cursor.position;
    return left.sequence != right.sequence ? left.sequence > right.sequence : a->way.txn_number > b->way.txn_number;
}

static bool is_better(const struct checkpoint_source *a, const struct checkpoint_source *b, uint64_t log_generation)
{
    const struct checkpoint_source *older = is_newer(a, b) ? b : a, *newer = older == a ? b : a;
    bool is_continued = older->look->state.cursor.reopen.generation >= log_generation;
    return a == (is_continued && checkpoint_source_lost(older) < checkpoint_source_lost(newer) ? older : newer);
}

static enum err open_by_meta(struct checkpoint_source **best_out, const struct kv_snapshot_source *ways, unsigned count, const char *dir,
                             uint64_t log_generation, struct errmsg *msg)
{
    struct checkpoint_source *best = NULL;
    for (unsigned i = 0; i < count; i++) {
        struct checkpoint_source *source = NULL;
        enum err err = open_way(&source, &ways[i], dir, false, msg);
        if (err == ERR_NOTFOUND)
            continue;
        if (err) {
            checkpoint_source_close(best);
            return err;
        }
        bool is_best = !best || is_better(source, best, log_generation);
        checkpoint_source_close(is_best ? best : source);
        best = is_best ? source : best;
    }
    *best_out = best;
    return best ? ERR_OK : ERR_NOTFOUND;
}

/* Lists of trees lie about by the hundred; the one that stands at the greatest position is the newest that is whole so far. */
static enum err open_by_root(struct checkpoint_source **best_out, uint32_t page_bytes, const char *dir, struct errmsg *msg)
{
    struct kv_snapshot_source way, best = {0};
    uint64_t page = 2, sequence = 0;
    enum err err;
    while ((err = kv_snapshot_source_find_root(&way, &page, page_bytes, dir, msg)) == ERR_OK) {
        struct checkpoint_source *source = NULL;
        err = open_way(&source, &way, dir, true, msg);
        if (err && err != ERR_NOTFOUND)
            return err;
        if (!err && source->look->state.cursor.position.sequence >= sequence) {
            best = way;
            sequence = source->look->state.cursor.position.sequence;
        }
        checkpoint_source_close(err ? NULL : source);
    }
    return err == ERR_NOTFOUND && best.page_bytes ? open_way(best_out, &best, dir, false, msg) : err;
}

static void tell(struct checkpoint_source *source, const struct kv_snapshot_source *ways, unsigned count)
{
    const struct kv_snapshot_source *way = &source->way, *other = NULL;
    uint64_t sequence = source->look->state.cursor.position.sequence;
    int size;
    for (unsigned i = 0; i < count; i++)
        if (ways[i].meta != way->meta)
            other = &ways[i];
    if (way->meta < 0)
        size = snprintf(source->text, sizeof source->text, "the newest commit that was found, by its list of trees in page %" PRIu64,
                        way->main_root);
    else
        size = snprintf(source->text, sizeof source->text, "commit %" PRIu64 " of meta page %d%s", way->txn_number, way->meta,
                        way->is_odd ? " (itself damaged)" : "");
    const char *than = "";
    if (way->meta >= 0 && !other)
        than = ", the other meta page cannot be read and may have been one newer";
    else if (other && other->txn_number > way->txn_number)
        than = ", which is OLDER than what is in the other meta page";
    if (size > 0 && (size_t)size < sizeof source->text)
        (void)snprintf(source->text + size, sizeof source->text - (size_t)size, "%s (it stands at record %" PRIu64 ")", than, sequence);
}

enum err checkpoint_source_open(struct checkpoint_source **source_out, const char *dir, uint64_t log_generation, struct errmsg *msg)
{
    struct kv_snapshot_source ways[2];
    struct checkpoint_source *source = NULL;
    unsigned count;
    enum err err = kv_snapshot_source_find(ways, &count, dir, msg);
    if (!err)
        err = open_by_meta(&source, ways, count, dir, log_generation, msg);
    if (err == ERR_NOTFOUND)
        err = open_by_root(&source, count ? ways[0].page_bytes : 4096, dir, msg);
    if (err)
        return err;
    tell(source, ways, count);
    *source_out = source;
    return ERR_OK;
}
