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
 *   checkpoint damaged values or pages: what can be read (checkpoint_source.h), and does not depend on what cannot, is copied into a new
 *             database. Nothing can be read, or it is missing where there was one: a new one, which learns what the log still holds
 *
 * Not for a directory in use: the caller holds its lock. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_REPAIR_H
#define TIDEGATE_BROKER_OPS_REPAIR_H

#include "broker/ops/repair_finding.h"
#include "common/err.h"

/* found_out: findings (with `yes`: that were put right). Returns 0; ERR_NOTFOUND (no data directory), ERR_LOCKED (in use), ERR_VERSION
 * (written by a newer program), ERR_CORRUPT (what it cannot put right: msg), ERR_NOSPACE, ERR_IO. */
enum err repair_run(const struct repair_options *options, unsigned *found_out, struct errmsg *msg) must_check;

#endif
