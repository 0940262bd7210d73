/* `tidegate-broker repair`: what keeps a broker from starting, or was damaged without keeping it, in words; and with `yes`, put right.
 *
 * Nothing is deleted: what is taken out goes to `damaged-TIME/` in the data directory, with the paths it had; each run has its own
 * (`damaged-TIME-2/`). Each finding says what is wrong (file and offset, or tree and key), what would be done and what is lost by it. A
 * repair that is interrupted is simply run again: every step leaves either the old finding or the new state. After carrying out it looks
 * again, and goes on until nothing is found.
 *
 *   log       a hole: the log is cut there, and a repair segment (log_segment.h) goes on above every generation and sequence that anybody
 *             ever claimed, so no number names two records. Readers meet the range as a gap
 *   cursors   unreadable: made again at the oldest record; what a consumer has already is a duplicate to it
 *   identity  lost: broker id and epoch from the segments
 *   state     unreadable: written again; it is a hint
 *   format    unreadable: written again from what is there
 *   checkpoint damaged values, or trees that end early: what can be read, and does not depend on what cannot, is copied into a new
 *             database. Not to be opened, or missing where there was one: a new one, which learns what the log still holds
 *
 * Not for a directory in use: the caller holds its lock. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_REPAIR_H
#define TIDEGATE_BROKER_OPS_REPAIR_H

#include <stdio.h>

#include "common/file.h"
#include "common/log_block.h"

struct checkpoint_look;

struct repair_options {
    const char *data_dir;
    uint64_t checkpoint_bytes_max; /* map size of a new database */
    bool yes;                      /* carry out; otherwise tell only */
    FILE *out;                     /* findings, for people */
};

/* found_out: findings (with `yes`: that were put right). Returns 0; ERR_NOTFOUND (no data directory), ERR_LOCKED (in use), ERR_VERSION
 * (written by a newer program), ERR_CORRUPT (what it cannot put right: msg), ERR_NOSPACE, ERR_IO. */
enum err repair_run(const struct repair_options *options, unsigned *found_out, struct errmsg *msg) must_check;

/* ---- between repair.c and repair_checkpoint.c ---- */

struct repair {
    const struct repair_options *options;
    struct fs *fs;
    struct errmsg *msg;
    /* Paths; aside is made with the first thing that goes there. */
    char log[FILE_PATH_MAX], checkpoint[FILE_PATH_MAX], aside[FILE_PATH_MAX];
    char aside_name[32];
    unsigned found;
};

/* Tell a finding; three lines. Returns whether to carry it out. */
bool repair_find(struct repair *repair, const char *wrong, const char *remedy, const char *loss);
/* Move data_dir/NAME (a relative path of one or two parts) aside. */
enum err repair_move_aside(struct repair *repair, const char *name) must_check;

/* The checkpoint's findings. begin: where a new one begins to read (generation 0: the log is empty). */
enum err repair_checkpoint(struct repair *repair, const struct checkpoint_look *look, uint32_t format,
                           const struct log_end *begin) must_check;

#endif
