/* One commit of an LMDB file, read without LMDB: for repair, when LMDB refuses the file or cannot be trusted with it.
 *
 * LMDB writes each commit to pages that nobody uses, and to the meta pages 0 and 1 in turn. A page freed by commit N is used again by N + 2
 * at the earliest; so the commit before the newest is whole in the file as well, and each meta page is a way into it. A snapshot is opened
 * by one of them (or by the root of a list of trees found somewhere in the file), and then is an ordinary `struct kv` for reading:
 *
 *   1. the trees are walked from their roots; what is not in its place, in the file, or of the right kind is lost, the rest goes on
 *   2. if anything was lost and the commit's list of free pages is whole: every page that is neither free nor was met is in use, so a leaf
 *      among them belongs to this commit, below a page that was lost. The CRC of its values tells which tree it is of
 *
 * Damaged values come out as from any kv: ERR_CORRUPT with their key. The file is read by pread() alone and every number in it is checked,
 * so any bytes may stand there and the disk may answer with errors (pages that it does not give are lost). Memory: a byte a page, 80 bytes
 * a leaf. Spans that come out live until the next call in the same tree of the transaction, shorter than kv.h says. Thread: one. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_H
#define TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_H

#include "broker/durable/kv.h"
#include "broker/durable/kv_snapshot_source.h"

#define KV_SNAPSHOT_PAGES_KNOWN 8

struct kv_snapshot_loss {
    uint64_t page_count;                     /* in use, and not to be read */
    uint64_t pages[KV_SNAPSHOT_PAGES_KNOWN]; /* the first of them */
    unsigned pages_known;
    uint64_t entry_count;  /* values that the commit says it has, and that were not met (where it says so) */
    bool is_counted;       /* it says so of all trees */
    uint64_t leaf_count;   /* read */
    uint64_t orphan_count; /* of these found without the page above */
    bool is_searched;      /* for orphans; false with page_count > 0: more may be missing than is known */
};

/* only_meta: of all trees only KV_META, and no search. kv_out returned, closed with kv_close(); it names dir/data.mdb. Returns 0,
 * ERR_NOTFOUND, ERR_PERMISSION, ERR_NOMEM, ERR_IO. */
enum err kv_snapshot_open(struct kv **kv_out, const char *dir, const struct kv_snapshot_source *source, bool only_meta,
                          struct errmsg *msg) must_check;
/* kv must be of kv_snapshot_open(). */
const struct kv_snapshot_loss *kv_snapshot_loss(struct kv *kv);

#endif
