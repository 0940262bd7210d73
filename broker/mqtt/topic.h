/* Topic names and filters: what is legal, and the slow obvious answer to which filter matches which topic.
 *
 * Levels are the pieces between slashes; they may be empty, so "/" has two. Names and filters are compared byte by byte, without any
 * normalisation [MQTT-4.7.3-4]. The broker's topic tree matches fast; topic_matches_filter() is the reference it is checked against.
 * Thread: any. Pure. Nothing allocates; spans are borrowed. */
#ifndef TIDEGATE_BROKER_MQTT_TOPIC_H
#define TIDEGATE_BROKER_MQTT_TOPIC_H

#include "broker/mqtt/mqtt_spec.h"
#include "common/bytes.h"

#define TOPIC_SIZE_MAX 65535 /* bytes [MQTT-4.7.3-3] */

/* A topic name: 1..TOPIC_SIZE_MAX bytes of valid UTF-8 without U+0000, no + and no # [MQTT-4.7.0-1] [MQTT-4.7.3-1 to -3]. */
bool topic_name_is_valid(struct span name);

/* The same with the reason: malformed (0x81) for bad UTF-8, topic name invalid (0x90) for an empty one or a wildcard. */
struct mqtt_verdict topic_name_check(struct span name);

/* A subscription's filter taken apart. */
struct topic_filter {
    struct span filter;     /* what topics are matched against; without "$share/NAME/" */
    struct span share_name; /* of a shared subscription, else empty */
    bool is_shared;
    bool has_wildcard; /* + or # in filter */
};

/* Check a filter as sent in SUBSCRIBE or UNSUBSCRIBE and take it apart.
 * MQTT_BAD: malformed (0x81) for bad UTF-8; topic filter invalid (0x8f) for an empty one, misplaced wildcards [MQTT-4.7.1-1, -2], or a
 * $share without a name, with + or # in it, or without a filter [MQTT-4.8.2-1, -2]. `out` is set with MQTT_OK only. In 3.1 and 3.1.1
 * "$share/..." means the same to us: mosquitto does so, and nothing can be published to it. */
struct mqtt_verdict topic_filter_parse(struct topic_filter *out, struct span text);

/* Whether `filter` (valid, without $share) matches `topic` (valid). A leading wildcard matches no topic that begins with $ [MQTT-4.7.2-1];
 * "a/#" matches "a". Linear in both; the reference. */
bool topic_matches_filter(struct span filter, struct span topic);

/* Iterate over levels: for (struct topic_levels it = topic_levels_of(name); topic_levels_next(&it, &level);) */
struct topic_levels {
    const uint8_t *at; /* NULL at the end */
    const uint8_t *end;
};
struct topic_levels topic_levels_of(struct span text);
bool topic_levels_next(struct topic_levels *it, struct span *level_out);

/* Slashes + 1. */
size_t topic_levels_count(struct span text);

#endif
