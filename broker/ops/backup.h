/* `tidegate-broker backup`: a consistent copy of a data directory, made by a process of its own while the broker runs, or while it does
 * not.
 *
 * The checkpoint is copied first (one read transaction), then the log from where the checkpoint, and every consumer's cursor, still needs
 * it up to the end as it is after that (LOG 22), found block by block as recovery finds it: the state file lags behind what was
 * acknowledged. So the copy is what a crash at that moment would have left. A cursor of its own,
 * `cursor.backup-PID`, holds the segments meanwhile and is the only thing that the broker notices; it goes at the end, whatever the end
 * is. Killed, it stays and holds the log until the next backup or start of the broker, which finds it unlocked and removes it.
 *
 * The copy is read back the way a start would (log_recovery.h, all checksums of the checkpoint's values) before BACKUP is written. Thread:
 * main. */
#ifndef TIDEGATE_BROKER_OPS_BACKUP_H
#define TIDEGATE_BROKER_OPS_BACKUP_H

#include <stdio.h>

#include "broker/ops/backup_list.h"

struct backup_options {
    const char *data_dir; /* persistence_location */
    const char *dir;      /* of the backup: missing, or empty */
    FILE *out;            /* what was done, for people */
};

#define BACKUP_CURSOR_PREFIX "backup-"

/* Returns 0; ERR_CORRUPT also when the backup was made but holds damaged values (they are named; msg says so). On any other error nothing
 * is left in `dir`. */
enum err backup_run(const struct backup_options *options, struct errmsg *msg) must_check;

/* Remove the cursors of backups whose process is gone: nobody holds their lock. on_removed: told each path. No such directory: 0. */
enum err backup_remove_stale_cursors(struct fs *fs, const char *log_dir, void (*on_removed)(void *arg, const char *path), void *arg,
                                     struct errmsg *msg) must_check;

#endif
