/* The checkpoint's part of a repair: a new database beside the old one, which then goes aside whole. So whatever happens in between, one of
 * the two is there, and what could not be read today may be read by somebody else tomorrow. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_REPAIR_CHECKPOINT_H
#define TIDEGATE_BROKER_OPS_REPAIR_CHECKPOINT_H

#include "broker/ops/repair_finding.h"
#include "common/log_block.h"

struct checkpoint_look;
struct checkpoint_source;

/* The checkpoint's findings. source: what to copy when it is damaged; NULL: there is nothing to be read. begin: where a new one begins to
 * read (generation 0: the log is empty). */
enum err repair_checkpoint(struct repair *repair, const struct checkpoint_look *look, const struct checkpoint_source *source,
                           uint32_t format, const struct log_end *begin) must_check;

#endif
