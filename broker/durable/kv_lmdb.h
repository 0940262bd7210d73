/* The checkpoint's database in LMDB: one environment in a directory of its own, one named tree for each of enum kv_tree.
 *
 * The map is reserved sparse at its full size and never resized while running, so readers never see it move; the file grows as pages are
 * used. Pages that a commit freed are used again as soon as no older read transaction is left, therefore none outlives a slice of work;
 * those of processes that were killed (a backup) end with the next write transaction. Commits are synced (no MDB_NOSYNC, no MDB_WRITEMAP):
 * what LMDB promises is then that after a crash the newest or the one before is whole. ENOSPC and a full map are ERR_NOSPACE; a failed sync
 * or write is ERR_IO, and no write transaction begins until the next opening. Threads: as kv.h says; readers are not bound to threads. One
 * process opens a directory once: LMDB's locks belong to the process. A read transaction that begins while a commit is under way may see
 * that commit before kv_commit() has returned, and one that begins later, but still before, may not.
 *
 * The directory holds data.mdb and lock.mdb. data.mdb appears under its name when it is complete (it is made as data.mdb.new), so one that
 * is empty or half is damage, never a crash at the first start.
 *
 * Damage. LMDB reads its file through a map, so a page that is missing at the end is a SIGBUS, not an error. Opening therefore reads the
 * two meta pages itself, compares them with the size of the file, and reports a file that lacks pages as ERR_CORRUPT. (Free pages at the
 * end need not have been written; a writer looks them up in the list of free pages, and keeps the file long enough for readers.) Damaged
 * values are found by kv.h's CRC, pages of a wrong kind by LMDB. What cannot be prevented here: a file that is cut while it is open, an
 * unreadable sector under the map (SIGBUS), and a page that looks right but whose inner offsets were changed (anything from ERR_CORRUPT to
 * an end of the process, whose last line names file and command: kv_lmdb_catch_faults()).
 *
 * A file that was removed or replaced while it is open is noticed by the next commit, which fails for good: nobody would find again what
 * goes into it, and the log must not be given up for that. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_H

#include "broker/durable/kv.h"

/* The process ends with status 1 and one line that names file, offset and the way out when a page of this database cannot be read (SIGBUS:
 * the file was cut, or the disk has failed) or leads outside of it (SIGSEGV), from now until kv_close(). Faults elsewhere are as before.
 * For one database of the process. kv must be of kv_lmdb_open(). Thread: main. */
void kv_lmdb_catch_faults(struct kv *kv);

struct kv_lmdb_options {
    const char *dir;     /* made when missing, and what is missing above it */
    uint64_t map_bytes;  /* address space and most that the file may become; rounded up to 4096. 0, read only: what the file says */
    bool read_only;      /* for backup, repair and check: another process may be writing. Makes no file */
    unsigned reader_max; /* read transactions at once, of all processes; 0: LMDB's 126 */
};

/* kv_out returned, closed with kv_close(). Returns 0, ERR_NOTFOUND (read only and not there), ERR_VERSION, ERR_CORRUPT (not an LMDB file,
 * or its meta pages are damaged), ERR_PERMISSION, ERR_NOSPACE, ERR_NOMEM, ERR_IO; msg names the directory. Thread: main. */
enum err kv_lmdb_open(struct kv **kv_out, const struct kv_lmdb_options *options, struct errmsg *msg) must_check;

/* A consistent copy of the whole database into `dir` (which exists and has no data.mdb), while it is used, without free pages, synced. It
 * is one long read transaction: meanwhile freed pages are not used again. What a failed copy left is removed. kv must be of kv_lmdb_open().
 * is_stopped  asked after each megabyte; true ends it with ERR_CLOSED. NULL: never.
 * Returns 0, ERR_CLOSED, ERR_EXISTS, ERR_NOSPACE, ERR_CORRUPT, ERR_PERMISSION, ERR_NOTFOUND, ERR_NOMEM, ERR_IO; msg says why. Thread: any.
 */
enum err kv_lmdb_copy(struct kv *kv, const char *dir, bool (*is_stopped)(void), struct errmsg *msg) must_check;

/* Write the database anew without its free pages and put that in place of the old one in one step, when at least `free_percent` (1..100)
 * of the file and KV_LMDB_COMPACT_MIN bytes are free pages. Not while another process reads it. *saved_out: bytes that the file lost, 0
 * when nothing was done. Whatever stops it leaves the database as it was. dir must not be open in this process. Returns 0 or why it could
 * not. */
#define KV_LMDB_COMPACT_MIN ((uint64_t)16 << 20)
enum err kv_lmdb_compact(uint64_t *saved_out, const struct kv_lmdb_options *options, unsigned free_percent, struct errmsg *msg) must_check;

/* Walk what no reader of trees looks at, and every writer does: the list of free pages (an opening to write has done so). Nobody writes.
 * kv must be of kv_lmdb_open(). Returns 0, ERR_CORRUPT, ERR_IO. Thread: any. */
enum err kv_lmdb_check_free(struct kv *kv) must_check;

#endif
