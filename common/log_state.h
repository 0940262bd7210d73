/* The durable end, where other processes can see it: file `state` of the log directory, two slots.
 *
 * The writer puts it there at most every 20 ms and when idle, after what it names is durable; readers poll it and read nothing past it.
 * It need not be synced: losing it only makes it older. Recovery takes a state past the place where it stopped as proof of corruption.
 * Owner: the log writer; readers open their own. */
#ifndef TIDEGATE_COMMON_LOG_STATE_H
#define TIDEGATE_COMMON_LOG_STATE_H

#include "common/file.h"
#include "common/log_block.h"
#include "common/log_slots.h"

#define LOG_STATE_INTERVAL_NS INT64_C(20000000)

struct log_state_value {
    uint64_t broker_id;
    uint64_t start;     /* of the start that wrote it */
    struct log_end end; /* durable */
    uint64_t alignment; /* of the blocks of that start */
};

struct log_state {
    struct log_slots slots;
};

/* Open for writing (create; the caller syncs the directory) or for reading (ERR_NOTFOUND when the broker has not been there yet). */
must_check enum err log_state_open(struct log_state *state, struct fs *fs, const char *dir, bool write);
void log_state_close(struct log_state *state);

/* Returns 0, ERR_NOTFOUND (never written), ERR_CORRUPT (both slots bad), ERR_VERSION, ERR_IO. */
must_check enum err log_state_read(struct log_state *state, struct log_state_value *value_out);
must_check enum err log_state_write(struct log_state *state, const struct log_state_value *value);

#endif
