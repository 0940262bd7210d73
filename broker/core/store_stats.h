/* What the store actor tells: the queue triplet of all stored messages. Cells: one writer, the store actor's thread. */
#ifndef TIDEGATE_BROKER_CORE_STORE_STATS_H
#define TIDEGATE_BROKER_CORE_STORE_STATS_H

#include "common/metrics.h"

struct store_stats {
    struct queue_stats stored;             /* messages beyond the resident windows; the age is that of the oldest session queue's head */
    struct gauge sessions;                 /* sessions that have some */
    struct counter puts, loads, forgotten; /* messages put, given back, dropped with their session */
};

#endif
