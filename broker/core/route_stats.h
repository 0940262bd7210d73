/* What the route actor tells. Cells: one writer, the route actor's thread. */
#ifndef TIDEGATE_BROKER_CORE_ROUTE_STATS_H
#define TIDEGATE_BROKER_CORE_ROUTE_STATS_H

#include "common/metrics.h"

struct route_stats {
    struct queue_stats scans; /* retained scans that wait or run (messages: scans; bytes: of their filters) */
    struct counter requests;  /* SUBSCRIBE, UNSUBSCRIBE and end of a session */
    struct counter retained_set, retained_removed, retained_superseded, retained_refused;
    struct counter retained_sent; /* values sent to new subscriptions */
    struct counter tree_refused;  /* filters for which the tree had no room */
    struct gauge retained_messages, retained_bytes, retained_index_bytes, retained_tombstones;
    struct gauge subscriptions, exact_filters, wildcard_filters, trie_nodes, tree_bytes;
};

#endif
