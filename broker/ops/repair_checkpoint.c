#include "broker/ops/repair_checkpoint.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/data_format.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/ops/checkpoint_look.h"
#include "broker/ops/checkpoint_source.h"
#include "broker/ops/data_files.h"
#include "common/log_segment.h"

#define NEW_NAME "checkpoint.repaired"
#define COMMIT_BYTES ((uint64_t)32 << 20) /* of values in one transaction */
#define TEXT_MAX 512
#define TOLD_MAX 200 /* damaged values told one by one */

__attribute__((format(printf, 2, 3))) static void print(char text_out[TEXT_MAX], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(text_out, TEXT_MAX, format, args);
    va_end(args);
}

/* ---- the new database ---- */

static enum err new_path(struct repair *repair, char path_out[FILE_PATH_MAX])
{
    enum err err = file_path(path_out, repair->options->data_dir, NEW_NAME);
    return err ? err_set(repair->msg, err, "%s: path too long", repair->options->data_dir) : ERR_OK;
}

/* What an interrupted repair left. */
static enum err remove_new(struct repair *repair, const char *dir)
{
    char **names;
    size_t count;
    enum err err = data_files_list(&names, &count, repair->fs, dir);
    if (err == ERR_NOTFOUND)
        return ERR_OK;
    for (size_t i = 0; i < count && !err; i++) {
        char path[FILE_PATH_MAX];
        err = file_path(path, dir, names[i]);
        if (!err)
            err = fs_unlink(repair->fs, path);
    }
    free(names);
    if (!err && rmdir(dir) != 0)
        err = ERR_IO;
    return err ? err_set(repair->msg, err, "%s: %s", dir, err_text(err)) : ERR_OK;
}

static enum err open_new(struct repair *repair, struct kv **kv_out, char path_out[FILE_PATH_MAX])
{
    enum err err = new_path(repair, path_out);
    if (!err)
        err = remove_new(repair, path_out);
    struct kv_lmdb_options options = {.dir = path_out, .map_bytes = repair->options->checkpoint_bytes_max};
    return err ? err : kv_lmdb_open(kv_out, &options, repair->msg);
}

/* The old one aside, the new one in its place. In between there is none, which no start takes for a first one (format 2), and the next
 * repair puts the new one there: it was whole before the old one went. */
static enum err replace(struct repair *repair, const char *new_dir)
{
    enum err err =
        fs_sync_dir(repair->fs, repair->options->data_dir); /* the new one's name is to outlive the power before the old one goes */
    if (err)
        return err_set(repair->msg, err, "%s: %s", repair->options->data_dir, err_text(err));
    if (data_files_exist(repair->options->data_dir, "checkpoint"))
        err = repair_move_aside(repair, "checkpoint");
    if (!err && (err = fs_rename(repair->fs, new_dir, repair->checkpoint)) != ERR_OK)
        return err_set(repair->msg, err, "%s: cannot be renamed: %s", new_dir, err_text(err));
    if (!err && (err = fs_sync_dir(repair->fs, repair->options->data_dir)) != ERR_OK)
        return err_set(repair->msg, err, "%s: %s", repair->options->data_dir, err_text(err));
    return err;
}

static enum err finish_replacing(struct repair *repair)
{
    char wrong[TEXT_MAX], path[FILE_PATH_MAX];
    enum err err = new_path(repair, path);
    if (err)
        return err;
    print(wrong, "%s: missing, and the new one is in %s: a repair was interrupted", repair->checkpoint, path);
    return repair_find(repair, wrong, "put it in its place", "nothing that the interrupted repair has not told") ? replace(repair, path)
                                                                                                                 : ERR_OK;
}

static enum err set_position(struct repair *repair, struct kv *kv, const struct log_end *begin)
{
    struct checkpoint *checkpoint = NULL;
    struct log_segment_header header;
    struct file *file = NULL;
    uint64_t random;
    enum err err = log_segment_open(&file, &header, repair->fs, repair->log, begin->place.generation);
    if (!err)
        err = fs_random(repair->fs, &random, sizeof random);
    if (err)
        return err_set(repair->msg, err, "%s/%016" PRIx64 ".seg: %s", repair->log, begin->place.generation, err_text(err));
    file_close(file);
    struct log_cursor_value cursor = {
        .broker_id = header.broker_id, .position = begin->position, .place = begin->place, .reopen = begin->place};
    err = checkpoint_open(&checkpoint, kv, random, repair->msg);
    if (!err)
        err = checkpoint_commit(checkpoint, &cursor, repair->msg);
    checkpoint_free(checkpoint);
    return err;
}

/* ---- begin anew ---- */

static enum err begin_anew(struct repair *repair, const struct log_end *begin)
{
    struct kv *kv = NULL;
    char path[FILE_PATH_MAX];
    if (!begin->place.generation) { /* no log either: the next start is a first one */
        enum err err = data_files_exist(repair->options->data_dir, "checkpoint") ? repair_move_aside(repair, "checkpoint") : ERR_OK;
        return !err && data_files_exist(repair->options->data_dir, "format") ? repair_move_aside(repair, "format") : err;
    }
    enum err err = open_new(repair, &kv, path);
    if (!err)
        err = set_position(repair, kv, begin);
    kv_close(kv);
    return err ? err : replace(repair, path);
}

static enum err tell_anew(struct repair *repair, const char *wrong, const struct log_end *begin)
{
    char remedy[TEXT_MAX];
    const char *loss =
        "sessions, subscriptions, queues and retained messages that came before that record; clients that come back find no session";
    if (begin->place.generation)
        print(remedy, "begin a new one with what the log still holds, from record %" PRIu64 " on", begin->position.sequence);
    else
        print(remedy, "the log is empty as well: the next start is a first one");
    return repair_find(repair, wrong, remedy, loss) ? begin_anew(repair, begin) : ERR_OK;
}

/* ---- salvage ---- */

struct salvage {
    struct kv *to;
    struct kv_txn *read, *write;
    uint64_t written_bytes; /* in this transaction */
    uint64_t kept, left_out;
    uint64_t without_body;         /* chunks of messages whose body is gone */
    struct checkpoint_row_out row; /* that is written */
};

static enum err salvage_commit(struct salvage *salvage)
{
    enum err err = kv_commit(salvage->write);
    salvage->write = NULL;
    salvage->written_bytes = 0;
    return err ? err : kv_begin(salvage->to, &salvage->write, true);
}

static bool has_body(struct salvage *salvage, uint64_t sequence)
{
    struct record ignored;
    return checkpoint_find_body(salvage->write, &ignored, sequence) != ERR_NOTFOUND;
}

/* A row of RECIPIENTS without the messages of which nothing is left, into salvage->row. */
static void drop_bodiless(struct salvage *salvage, struct span key, struct span value)
{
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct checkpoint_wants wants;
    checkpoint_row_begin(&salvage->row, kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8));
    while (checkpoint_row_next_wants(&row, &wants) == ERR_OK) {
        if (has_body(salvage, wants.sequence)) {
            checkpoint_row_put_wants(&salvage->row, wants.sequence, wants.content_bytes, wants.recipients.size);
            buf_put_span(&salvage->row.buf, wants.recipients);
        } else {
            salvage->without_body++;
        }
    }
}

/* Who wants a message of which nothing is left wants nothing. Bodies come before all that names them. What else does not fit afterwards (by
 * how many a body is held, wants of sessions that are gone) the next load puts right. */
static bool is_bodiless(struct salvage *salvage, enum kv_tree tree, struct span key, struct span value)
{
    struct checkpoint_retained retained;
    if (tree == KV_RETAINED && checkpoint_retained_decode(&retained, value) == ERR_OK && retained.sequence)
        return !has_body(salvage, retained.sequence);
    return tree == KV_HOLDERS && key.size == 8 && !has_body(salvage, kv_key_read_u64(key.data));
}

static enum err salvage_value(struct salvage *salvage, enum kv_tree tree, struct span key, struct span value)
{
    if (is_bodiless(salvage, tree, key, value)) {
        salvage->without_body++;
        return ERR_OK;
    }
    if (tree == KV_RECIPIENTS && key.size == 16) {
        drop_bodiless(salvage, key, value);
        if (salvage->row.buf.err || checkpoint_row_is_empty(&salvage->row))
            return salvage->row.buf.err;
        value = buf_span(&salvage->row.buf);
    }
    enum err err = kv_put(salvage->write, tree, key, value);
    salvage->kept += !err;
    salvage->written_bytes += key.size + value.size;
    return err || salvage->written_bytes < COMMIT_BYTES ? err : salvage_commit(salvage);
}

static enum err salvage_tree(struct salvage *salvage, enum kv_tree tree)
{
    struct span key, value;
    enum err err = kv_seek(salvage->read, tree, span_of(NULL, 0), &key, &value);
    while (err != ERR_NOTFOUND) {
        if (!err)
            err = checkpoint_check_entry(tree, key, value);
        salvage->left_out += err == ERR_CORRUPT;
        if (!err)
            err = salvage_value(salvage, tree, key, value);
        if (err && err != ERR_CORRUPT)
            return err;
        err = kv_next(salvage->read, tree, &key, &value);
    }
    return ERR_OK;
}

static enum err salvage_trees(struct salvage *salvage, struct kv *from)
{
    static const enum kv_tree order[KV_TREE_COUNT] = {KV_META, KV_BODIES, KV_SESSIONS, KV_RECIPIENTS, KV_HOLDERS, KV_RUNS, KV_RETAINED};
    enum err err = kv_begin(from, &salvage->read, false);
    if (!err)
        err = kv_begin(salvage->to, &salvage->write, true);
    for (int i = 0; i < KV_TREE_COUNT && !err; i++)
        err = salvage_tree(salvage, order[i]);
    kv_abort(salvage->read);
    if (err) {
        kv_abort(salvage->write);
        return err;
    }
    return kv_commit(salvage->write);
}

static enum err carry_out_salvage(struct repair *repair, struct kv *from)
{
    struct salvage salvage = {0};
    char path[FILE_PATH_MAX];
    enum err err = open_new(repair, &salvage.to, path);
    if (err)
        return err;
    checkpoint_row_init(&salvage.row);
    err = salvage_trees(&salvage, from);
    checkpoint_row_deinit(&salvage.row);
    kv_close(salvage.to);
    if (err)
        return err_set(repair->msg, err, "%s: copying what can be read: %s", repair->checkpoint, err_text(err));
    err = replace(repair, path);
    if (!err)
        fprintf(repair->options->out,
                "   kept %" PRIu64 " values, left out %" PRIu64 ", and %" PRIu64 " that named messages without a body\n", salvage.kept,
                salvage.left_out, salvage.without_body);
    return err;
}

/* What is known of a session besides its value: how much of its queue lies in runs. */
static uint64_t count_runs(struct kv_txn *txn, uint64_t session)
{
    uint8_t bytes[16];
    struct span key, value;
    uint64_t count = 0;
    enum err err = kv_seek(txn, KV_RUNS, kv_key_u64_u64(bytes, session, 0), &key, &value);
    while (!err && key.size >= 8 && kv_key_read_u64(key.data) == session) {
        count++;
        err = kv_next(txn, KV_RUNS, &key, &value);
    }
    return count;
}

static void tell_values(struct repair *repair, const struct checkpoint_source *source)
{
    const struct checkpoint_look *look = source->look;
    struct kv_txn *txn = NULL;
    FILE *out = repair->options->out;
    if (kv_begin(source->kv, &txn, false) != ERR_OK)
        txn = NULL;
    for (uint32_t i = 0; i < look->damage_known && i < TOLD_MAX; i++) {
        const struct checkpoint_damage *damage = &look->damage[i];
        char text[CHECKPOINT_LOOK_TEXT], hex[KV_KEY_TEXT_SIZE];
        kv_key_text(hex, span_of(damage->key, damage->key_size));
        checkpoint_damage_text(text, damage);
        fprintf(out, "   tree %s, key %s: %s", kv_tree_name((enum kv_tree)damage->tree), hex, text);
        if (damage->tree == KV_SESSIONS && damage->key_size >= 8 && txn)
            fprintf(out, "; %" PRIu64 " runs of %d messages wait for it", count_runs(txn, kv_key_read_u64(damage->key)), CHECKPOINT_RUN);
        fputc('\n', out);
    }
    if (look->damage_count > TOLD_MAX)
        fprintf(out, "   ... and %" PRIu64 " more\n", look->damage_count - TOLD_MAX);
    kv_abort(txn);
}

static void tell_pages(struct repair *repair, const struct checkpoint_source *source)
{
    const struct kv_snapshot_loss *loss = kv_snapshot_loss(source->kv);
    FILE *out = repair->options->out;
    for (unsigned i = 0; i < loss->pages_known; i++)
        fprintf(out, "   page %" PRIu64 ", at offset %" PRIu64 ": cannot be read\n", loss->pages[i],
                loss->pages[i] * source->way.page_bytes);
    if (loss->page_count > loss->pages_known)
        fprintf(out, "   ... and %" PRIu64 " more\n", loss->page_count - loss->pages_known);
    if (loss->orphan_count)
        fprintf(out, "   %" PRIu64 " pages of values below them were found without them\n", loss->orphan_count);
    if (loss->page_count && !loss->is_searched)
        fprintf(out, "   the list of free pages cannot be read either: what hangs on these pages alone is lost with them\n");
}

static bool is_meta_damaged(const struct checkpoint_look *look)
{
    for (uint32_t i = 0; i < look->damage_known; i++) {
        if (look->damage[i].tree == KV_META)
            return true;
    }
    return false;
}

/* ---- findings ---- */

/* Does the log still hold what comes behind the checkpoint? */
static enum err repair_gap(struct repair *repair, const struct checkpoint_look *look, const struct log_end *begin)
{
    char wrong[TEXT_MAX], remedy[TEXT_MAX], loss[TEXT_MAX];
    struct log_segment_header next;
    struct kv *kv = NULL;
    const struct log_cursor_value *cursor = &look->state.cursor;
    if (!begin->place.generation || cursor->reopen.generation >= begin->place.generation)
        return ERR_OK;
    if (log_segment_find_next(&next, repair->fs, repair->log, cursor->reopen.generation) == ERR_OK && next.is_repair)
        return ERR_OK; /* cut away by an earlier repair, which said so */
    print(wrong, "%s: stands at record %" PRIu64 " in segment %016" PRIx64 ", and the log begins with record %" PRIu64 " in %016" PRIx64,
          repair->checkpoint, cursor->position.sequence, cursor->reopen.generation, begin->position.sequence, begin->place.generation);
    print(remedy, "go on from record %" PRIu64, begin->position.sequence);
    print(loss, "what records %" PRIu64 " to %" PRIu64 " said: messages, acknowledgements, subscriptions", cursor->position.sequence,
          begin->position.sequence - 1);
    if (!repair_find(repair, wrong, remedy, loss))
        return ERR_OK;
    struct kv_lmdb_options options = {.dir = repair->checkpoint, .map_bytes = repair->options->checkpoint_bytes_max};
    enum err err = kv_lmdb_open(&kv, &options, repair->msg);
    if (!err)
        err = set_position(repair, kv, begin);
    kv_close(kv);
    return err;
}

/* Nothing lost, or everything in the log from the first record that ever was: then the log alone makes more of it. */
static bool is_worth_it(const struct checkpoint_source *source, const struct log_end *begin)
{
    return checkpoint_source_lost(source) == 0 || !begin->place.generation || begin->position.sequence > 1;
}

static enum err tell_salvage(struct repair *repair, const char *wrong, const struct checkpoint_source *source, const struct log_end *begin)
{
    char remedy[TEXT_MAX], loss[TEXT_MAX];
    const struct kv_snapshot_loss *pages = kv_snapshot_loss(source->kv);
    print(remedy, "copy %s into a new database; the old one goes aside; the next start takes what came since from the log", source->text);
    if (checkpoint_source_lost(source) == 0)
        print(loss, pages->page_count ? "nothing: the pages that cannot be read led to others, which were found without them" : "nothing");
    else
        print(loss,
              "%s%" PRIu64 " values that are damaged and %" PRIu64
              " that are missing; and what depends on them: with a session its queue; with a row of bodies its messages (one, or as many "
              "small ones as fit 4 KiB) for all that want them; with a row of recipients up to 32 places in queues, or, of a message that "
              "many want, up to 256",
              pages->is_counted ? "" : "what stood in the pages named here, if they were not only ways to others; ",
              source->look->damage_count, pages->entry_count);
    bool yes = repair_find(repair, wrong, remedy, loss);
    tell_pages(repair, source);
    tell_values(repair, source);
    if (yes)
        return carry_out_salvage(repair, source->kv);
    return repair_gap(repair, source->look, begin); /* what the next round would find */
}

enum err repair_checkpoint(struct repair *repair, const struct checkpoint_look *look, const struct checkpoint_source *source,
                           uint32_t format, const struct log_end *begin)
{
    char wrong[TEXT_MAX];
    if (!look->is_there && data_files_exist(repair->options->data_dir, NEW_NAME))
        return finish_replacing(repair);
    if (!look->is_there && format < DATA_FORMAT_CHECKPOINT)
        return ERR_OK;
    if (!look->is_there) {
        print(wrong, "%s/data.mdb: missing, and there was one (format %" PRIu32 ")", repair->checkpoint, format);
        return tell_anew(repair, wrong, begin);
    }
    bool is_meta = is_meta_damaged(look);
    if (look->err || look->damage_count || look->is_free_damaged) {
        if (look->err) /* it names the file */
            print(wrong, "%s", look->why.text);
        else if (is_meta)
            print(wrong, "%s/data.mdb: a value that describes the whole (tree meta) is damaged", repair->checkpoint);
        else
            print(wrong, "%s/data.mdb: %" PRIu64 " of %" PRIu64 " values are damaged%s", repair->checkpoint, look->damage_count,
                  look->entry_count, look->is_free_damaged ? ", and so is the list of free pages, which every write needs" : "");
        bool is_whole = !look->err && !is_meta; /* LMDB reads it; then what is damaged is left out */
        return source && (is_whole || is_worth_it(source, begin)) ? tell_salvage(repair, wrong, source, begin)
                                                                  : tell_anew(repair, wrong, begin);
    }
    if (look->state.broker_id == 0) {
        if (format < DATA_FORMAT_CHECKPOINT)
            return ERR_OK;
        print(wrong, "%s/data.mdb: is empty, and it was not (format %" PRIu32 ")", repair->checkpoint, format);
        return tell_anew(repair, wrong, begin);
    }
    return repair_gap(repair, look, begin);
}
