/* The topics of an ordered index (route/topic_index.h) that match one filter, without looking at all of them.
 *
 * Who walks the index asks about one topic, and either takes it and goes to the next, or learns from the first level that does not fit how
 * far to seek: to the level that the filter asks for; or, when that is behind us, past the subtree of the last level that a `+` took. Each
 * seek goes forward, so a walk ends. Between slices only topic_seek_key() is remembered, so any change of the index in between is
 * harmless. Pure. */
#ifndef TIDEGATE_BROKER_ROUTE_TOPIC_SEEK_H
#define TIDEGATE_BROKER_ROUTE_TOPIC_SEEK_H

#include <stdbool.h>

#include "common/bytes.h"

struct topic_seek;

enum topic_seek_verdict {
    TOPIC_SEEK_MATCH, /* it matches; go to the next */
    TOPIC_SEEK_ON,    /* it does not; seek topic_seek_key() */
    TOPIC_SEEK_END,   /* none behind it does */
};

/* filter: well formed, 1..65535 bytes; copied. Returned; NULL when memory is short. */
struct topic_seek *topic_seek_new(struct span filter);
void topic_seek_free(struct topic_seek *seek); /* NULL is fine */
/* Where to seek to: at first the levels in front of the first wildcard. Borrowed until the next call. */
struct span topic_seek_key(const struct topic_seek *seek);
/* Room for every key that a topic of that size can lead to; needed before the two below. False: memory is short. */
bool topic_seek_reserve(struct topic_seek *seek, size_t topic_size);
/* The walk pauses: its key is this topic, which was not asked about yet. */
void topic_seek_pause(struct topic_seek *seek, struct span topic);
/* Does the topic (1..65535 bytes) match? */
enum topic_seek_verdict topic_seek_judge(struct topic_seek *seek, struct span topic);

#endif
