/* What the route actor tells. Cells: one writer, the route actor's thread. */
#ifndef TIDEGATE_BROKER_ROUTE_ROUTE_STATS_H
#define TIDEGATE_BROKER_ROUTE_ROUTE_STATS_H

#include "common/metrics.h"

struct route_stats {
    struct queue_stats scans; /* retained scans that wait or run (messages: scans; bytes: of their filters) */
    struct counter requests;  /* SUBSCRIBE, UNSUBSCRIBE and end of a session */
    struct counter retained_set, retained_removed, retained_superseded;
    struct counter retained_expired; /* values that were removed for that */
    struct counter retained_sent;    /* values sent to new subscriptions */
    /* With retained_on_disk: values that scans read; of these, gone (replaced, removed or expired meanwhile) and damaged ones. */
    struct counter retained_read, retained_read_gone, retained_read_corrupt;
    struct counter retained_stale;      /* values in a scan's hand that were replaced, removed or expired before they could be sent */
    struct queue_stats retained_reads;  /* asked of the reader and not answered */
    struct queue_stats retained_window; /* messages in memory until the checkpoint has them */
    struct gauge retained_cached_bytes; /* of values read from disk that are kept */
    struct counter tree_refused;        /* filters for which the tree had no room */
    struct gauge retained_messages, retained_bytes, retained_index_bytes, retained_tombstones;
    struct gauge subscriptions, exact_filters, wildcard_filters, trie_nodes, tree_bytes;
};

#endif
