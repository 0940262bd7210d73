/* Telemetry rules: which topics are telemetry, and of which device.
 *
 *     telemetry fleet/{device}/telemetry
 *     telemetry plant/+/{device}/# name=plant device=topic max_qos=1 on_no_device=refuse
 *     telemetry_ignore fleet/test/#
 *
 * `{device}` stands for exactly one whole level, + and # are MQTT's. Without {device} the device is the client id. Rules and ignores are
 * asked in file order and the first that matches decides; an ignore says "not telemetry". Pure after parsing; read-only and shared by all
 * shards. */
#ifndef TIDEGATE_BROKER_TELEMETRY_RULE_H
#define TIDEGATE_BROKER_TELEMETRY_RULE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

enum rule_device_source { RULE_DEVICE_TOPIC, RULE_DEVICE_CLIENT_ID, RULE_DEVICE_USER_NAME };
enum rule_no_device { RULE_NO_DEVICE_REFUSE, RULE_NO_DEVICE_CLIENT_ID, RULE_NO_DEVICE_SKIP };

struct rule {
    char *name;   /* name=..., by default the pattern itself */
    char *filter; /* the pattern as MQTT filter: {device} replaced by + */
    uint16_t name_size, filter_size;
    uint16_t head_size, head_levels; /* of the filter before its first wildcard, if that is a +: compared at once */
    uint32_t tail_at;                /* where what stands behind the last wildcard begins, likewise; filter_size + 1 = nothing does */
    uint16_t device_level;           /* 0-based level of {device}; UINT16_MAX when the source is not the topic */
    uint8_t device_source;           /* enum rule_device_source */
    uint8_t on_no_device;            /* enum rule_no_device: an empty level, a client without user name */
    uint8_t max_qos;                 /* 0..2 */
    bool ignore;                     /* a telemetry_ignore line */
    int line;                        /* of the configuration file, for messages */
};

struct rule_table {
    struct rule *rules;
    uint16_t count;
    uint32_t partition_count; /* 1..4096: murmur2(device) mod this */
};

enum rule_verdict {
    RULE_NONE,    /* not telemetry */
    RULE_MATCH,   /* telemetry: device_out is set */
    RULE_REFUSE,  /* telemetry by its topic, no device, and the rule says refuse: answer 0x83/0x99 or close, counted */
    RULE_SKIPPED, /* telemetry by its topic, no device, and the rule says skip: counted */
};

struct rule_subject {
    struct span topic, client_id, user_name; /* user_name.size 0 when there is none */
};

/* Append the rule that `text` (what stands behind the key) describes. ignore: a telemetry_ignore line. Errors say what was expected. */
enum err rule_table_add(struct rule_table *table, const char *text, bool ignore, int line, struct errmsg *msg);
void rule_table_deinit(struct rule_table *table);

/* The decision for one PUBLISH. rule_out and device_out only with RULE_MATCH (rule_out with REFUSE and SKIPPED as well); device_out is a
 * span into the subject. Thread: any. Does not allocate. */
enum rule_verdict rule_table_match(const struct rule_table *table, const struct rule **rule_out, struct span *device_out,
                                   const struct rule_subject *subject);

#endif
