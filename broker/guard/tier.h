/* Tiers: what an acknowledgement of a PUBLISH promises, by topic.
 *
 *     tier alarms/# log
 *     tier fleet/+/position memory
 *
 * The first filter in file order that matches decides; without one it is `log`. A tier is about the answer alone: with `memory` PUBACK and
 * PUBREC leave before the record is durable. The record is written all the same, and who waits for it (persistent sessions, QoS 2) waits.
 * Pure after parsing; read-only and shared by all shards. */
#ifndef TIDEGATE_BROKER_GUARD_TIER_H
#define TIDEGATE_BROKER_GUARD_TIER_H

#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

/* What an answer stands for, as a client may ask to be told. */
enum durability {
    DURABILITY_LOG,    /* its record is durable */
    DURABILITY_MEMORY, /* its record is on its way */
    DURABILITY_NONE,   /* it has no record: nobody needs one, or there is no log */
};

struct tier_line {
    struct span filter; /* own block */
    uint8_t durability; /* DURABILITY_LOG or DURABILITY_MEMORY */
    int line;           /* of the configuration file, for messages */
};

struct tier_table {
    struct tier_line *lines;
    uint16_t count;
};

/* Append what `text` (what stands behind the key) says. Errors say what was expected. */
enum err tier_table_add(struct tier_table *table, const char *text, int line, struct errmsg *msg) must_check;
void tier_table_deinit(struct tier_table *table);

/* The line that decides for a topic name, NULL when none matches. Thread: any. Does not allocate. */
const struct tier_line *tier_table_match(const struct tier_table *table, struct span topic);

/* "log", "memory", "none". Static storage. */
const char *durability_name(enum durability durability);

#endif
