/* `tidegate-broker restore`: a data directory out of a backup, under a broker id of its own.
 *
 * Everything in the list is read and compared before a byte is written. The restored broker goes on where the backup ends, and so may the
 * one it was taken from, or may have done: the same sequences would come twice with different contents. Therefore restoring draws a new
 * broker id (LOG 20). Segments of the backup keep the identity they were written under, so whoever stored their records knows them; the
 * epoch goes on. Cursors are written with the new id: the sink believes its own stored position only where the ids agree, and begins at
 * the cursor otherwise, which costs some reading and loses nothing.
 *
 * The order makes an interrupted restore harmless: `format` first, then the log, the checkpoint last, each made aside and renamed. A start
 * in between finds a part that is still aside and refuses (data_format.h), and so do backup and repair. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_RESTORE_H
#define TIDEGATE_BROKER_OPS_RESTORE_H

#include <stdio.h>

#include "broker/ops/backup_list.h"

struct restore_options {
    const char *data_dir; /* persistence_location: missing, or empty */
    const char *dir;      /* of the backup */
    FILE *out;            /* what was done, for people */
};

/* Returns 0; ERR_EXISTS (data_dir holds something), ERR_CORRUPT (the backup is not what it says: msg names the file), ERR_NOTFOUND (no
 * backup), ERR_NOSPACE, ... */
enum err restore_run(const struct restore_options *options, struct errmsg *msg) must_check;

#endif
