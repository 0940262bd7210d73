/* The subscription index: which subscribers does a topic reach? Written by the route thread alone, read by every shard at once.
 *
 * Exact filters live in one hash set, keyed by the whole filter. Wildcard filters live in a trie, whose children all share a second hash
 * set, keyed by (parent, level), so a node costs the same however many children it has; `+` and `#` hang on the node itself. A match is
 * one lookup for the exact filter, and then a walk level by level over the trie nodes that still fit, without recursion: a topic may have
 * any number of levels. Work per level is bounded by the number of trie nodes of that depth that match, never by subscribers elsewhere.
 *
 * Subscribers of one filter: one alone is 16 bytes; up to 32 are one block, replaced as a whole; more are spread by hash over such blocks
 * under a directory, so that adding or removing one of a million copies at most 512 bytes, and a match streams over blocks.
 *
 * Memory (measured, jemalloc, a million each): 88 bytes for an exact filter of 29 bytes with one subscriber; 17 to 30 bytes for each
 * subscriber of a large fan-out; 186 bytes for `fleet/ID/cmd/#` with an ID of its own, that is two trie nodes of 50 to 64 bytes, their
 * places in the set, and the subscriber. Matching a topic that nobody subscribed to stores nothing.
 *
 * Consistency: a match sees every subscription that was in the tree from before it began until after it ended, exactly once each; one that
 * is added, replaced or removed meanwhile may be seen in either state, never twice and never half.
 *
 * Filters and topics are given as the packet decoder accepted them (1..65535 bytes, wildcards well placed); `$share/NAME/` is taken off by
 * the caller. Case and empty levels matter: "/a", "a" and "a/" are three topics. A topic that begins with `$` is not reached by a filter
 * that begins with a wildcard [MQTT-4.7.2-1].
 *
 *   route thread                                           shard
 *   topic_tree_add(tree, &was, SPAN_LITERAL("a/+"), &sub); reader = topic_tree_reader_register(tree);     once
 *   topic_tree_poll(tree);     once a turn                 epoch_begin(reader);                           once a turn
 *                                                          topic_tree_match(tree, reader, topic, &list);
 *                                                          for i < list.count: list.matches[i]...
 *                                                          epoch_end(reader);
 */
#ifndef TIDEGATE_BROKER_ROUTE_TOPIC_TREE_H
#define TIDEGATE_BROKER_ROUTE_TOPIC_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/route/subscriber.h"
#include "common/bytes.h"
#include "common/epoch.h"
#include "common/err.h"

struct topic_tree; /* writer functions: route thread; match functions: any thread inside a section */

/* hash_key  64 random bits drawn at start (in tests: any), so that a peer cannot aim at one slot. Returned; NULL when memory is short. */
struct topic_tree *topic_tree_new(uint64_t hash_key);
/* Thread: writer, no readers left. NULL is fine. */
void topic_tree_free(struct topic_tree *tree);

/* Of its readers, for what else they look at in the same sections. Borrowed. */
struct epoch *topic_tree_epoch(struct topic_tree *tree);
/* A reader of the calling thread, to be given to topic_tree_match; given back by epoch_reader_unregister(). NULL when memory is short. */
struct epoch_reader *topic_tree_reader_register(struct topic_tree *tree);

/* Add a subscriber to a filter, or replace its qos, options and identifier when it is there.
 * was_there_out  whether it was there before (retain handling 1); may be NULL.
 * Returns 0, ERR_NOMEM (nothing changed), ERR_INVALID (empty, longer than 65535 bytes, or a misplaced wildcard). Thread: writer. */
enum err topic_tree_add(struct topic_tree *tree, bool *was_there_out, struct span filter, const struct subscriber *sub) must_check;

/* Take a subscriber off a filter. Returns whether it was there. Never fails. Thread: writer. */
bool topic_tree_remove(struct topic_tree *tree, struct span filter, uint64_t number);

/* The subscriber of a filter, if it is there. Thread: writer. */
bool topic_tree_get(struct topic_tree *tree, struct subscriber *sub_out, struct span filter, uint64_t number);

/* Where a filter stands in the tree; word 0 = nowhere. Valid for as long as the subscriber is there that it was found for: what it points
 * to does not change or move until then. */
struct topic_filter_ref {
    uintptr_t word;
};

/* The place of a filter, if the subscriber of that number is on it. reader: of this thread, inside a section; NULL only for the writer
 * itself. Thread: any. */
struct topic_filter_ref topic_tree_find(struct topic_tree *tree, struct epoch_reader *reader, struct span filter, uint64_t number);
/* Its text, into `out` unless that is NULL. Returns its size in bytes. Thread: any, without a section. */
size_t topic_filter_text(struct topic_filter_ref ref, uint8_t *out);

/* Everyone whose filter matches the topic, into `list` (which it empties first).
 * reader  of this thread, inside a section; NULL only for the writer itself.
 * Returns 0 or ERR_NOMEM when the list could not grow (the list is then incomplete: refuse the message).
 * Does not allocate once the list has grown. Thread: any. */
enum err topic_tree_match(struct topic_tree *tree, struct epoch_reader *reader, struct span topic, struct match_list *list) must_check;

/* Is there any subscriber at all? Stops at the first. `list` lends its scratch room and is left empty; when memory for that is short the
 * answer is true. Thread: any, as for topic_tree_match. */
bool topic_tree_any(struct topic_tree *tree, struct epoch_reader *reader, struct span topic, struct match_list *list);

/* Free what no reader sees any more; true while something is still waiting. Once a turn of the route thread. */
bool topic_tree_poll(struct topic_tree *tree);

struct topic_tree_stats {
    size_t exact_filters;    /* distinct filters without wildcard */
    size_t wildcard_filters; /* distinct filters with one */
    size_t nodes;            /* of the trie, without the root */
    size_t subscriptions;    /* (filter, subscriber) pairs */
    size_t bytes;            /* as asked from malloc, without what is deferred */
    size_t deferred;         /* blocks that wait for readers */
};
/* Thread: writer. */
void topic_tree_get_stats(const struct topic_tree *tree, struct topic_tree_stats *stats_out);

#endif
