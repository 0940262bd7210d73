#include "broker/mqtt/topic.h"

#include "common/utf8.h"

#define BYTES_OF(byte) (UINT64_C(0x0101010101010101) * (byte))

/* High bit set in the lanes of `word` that are 0; lanes above a true one may be set falsely, so only "any" is exact. */
static inline uint64_t zero_lanes(uint64_t word) { return (word - BYTES_OF(0x01)) & ~word & BYTES_OF(0x80); }

/* What kinds of bytes a text holds. */
struct scan {
    uint64_t high;    /* bytes above 0x7f: it needs a real UTF-8 check */
    uint64_t special; /* NUL, + or # */
};

/* '+' is 0x2b and '#' is 0x23: they differ in bit 3 only. */
static inline void scan_word(struct scan *scan, uint64_t word)
{
    scan->high |= word & BYTES_OF(0x80);
    scan->special |= zero_lanes(word) | zero_lanes((word | BYTES_OF(0x08)) ^ BYTES_OF(0x2b));
}

/* Eight bytes at a time, the last word overlapping. */
static inline struct scan scan_text(struct span text)
{
    struct scan scan = {0, 0};
    if (text.size >= 8) {
        for (size_t i = 0; i + 8 < text.size; i += 8)
            scan_word(&scan, load_le64(text.data + i));
        scan_word(&scan, load_le64(text.data + text.size - 8));
        return scan;
    }
    uint64_t word = BYTES_OF('a');
    if (text.size)
        memcpy(&word, text.data, text.size);
    scan_word(&scan, word);
    return scan;
}

struct mqtt_verdict topic_name_check(struct span name)
{
    if (name.size == 0)
        return mqtt_bad(MQTT_REASON_TOPIC_NAME_INVALID, "topic name: empty [MQTT-4.7.3-1]");
    if (name.size > TOPIC_SIZE_MAX)
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "topic name: longer than 65,535 bytes [MQTT-4.7.3-3]");
    struct scan scan = scan_text(name);
    if (__builtin_expect((scan.high | scan.special) == 0, 1))
        return mqtt_ok();
    if (!utf8_is_valid(name))
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "topic name: not valid UTF-8 [MQTT-3.3.2-1] [MQTT-4.7.3-2]");
    if (memchr(name.data, '+', name.size) || memchr(name.data, '#', name.size))
        return mqtt_bad(MQTT_REASON_TOPIC_NAME_INVALID, "topic name: wildcard [MQTT-3.3.2-2] [MQTT-4.7.0-1]");
    return mqtt_ok();
}

bool topic_name_is_valid(struct span name) { return topic_name_check(name).judgement == MQTT_OK; }

/* + fills a level, # fills the last one. */
static struct mqtt_verdict check_wildcards(bool *has_wildcard_out, struct span filter)
{
    *has_wildcard_out = false;
    for (size_t i = 0; i < filter.size; i++) {
        uint8_t byte = filter.data[i];
        if (byte != '+' && byte != '#')
            continue;
        *has_wildcard_out = true;
        bool begins_level = i == 0 || filter.data[i - 1] == '/';
        bool is_last = i + 1 == filter.size;
        if (byte == '#' && !(begins_level && is_last))
            return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: # is not the whole last level [MQTT-4.7.1-1]");
        if (byte == '+' && !(begins_level && (is_last || filter.data[i + 1] == '/')))
            return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: + is not a whole level [MQTT-4.7.1-2]");
    }
    return mqtt_ok();
}

struct mqtt_verdict topic_filter_parse(struct topic_filter *out, struct span text)
{
    static const char share_prefix[] = "$share/";
    const size_t prefix_size = sizeof share_prefix - 1;

    if (text.size == 0)
        return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: empty [MQTT-4.7.3-1]");
    if (text.size > TOPIC_SIZE_MAX)
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "topic filter: longer than 65,535 bytes [MQTT-4.7.3-3]");
    struct scan scan = scan_text(text);
    if ((scan.high | scan.special) != 0 && !utf8_is_valid(text))
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "topic filter: not valid UTF-8 [MQTT-3.8.3-1] [MQTT-3.10.3-1] [MQTT-4.7.3-2]");

    struct span share_name = {0, 0};
    struct span filter = text;
    bool is_shared = text.size >= prefix_size && memcmp(text.data, share_prefix, prefix_size) == 0;
    if (is_shared) {
        struct span rest = span_of(text.data + prefix_size, text.size - prefix_size);
        const uint8_t *slash = rest.size ? memchr(rest.data, '/', rest.size) : NULL;
        share_name = span_of(rest.data, slash ? (size_t)(slash - rest.data) : rest.size);
        if (share_name.size == 0)
            return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: $share without a name [MQTT-4.8.2-1]");
        if (memchr(share_name.data, '+', share_name.size) || memchr(share_name.data, '#', share_name.size))
            return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: wildcard in the share name [MQTT-4.8.2-2]");
        if (!slash || (size_t)(slash - rest.data) + 1 == rest.size)
            return mqtt_bad(MQTT_REASON_TOPIC_FILTER_INVALID, "topic filter: $share without a filter [MQTT-4.8.2-2]");
        filter = span_of(slash + 1, rest.size - share_name.size - 1);
    }
    bool has_wildcard = false;
    if (scan.special != 0) {
        struct mqtt_verdict verdict = check_wildcards(&has_wildcard, filter);
        if (verdict.judgement != MQTT_OK)
            return verdict;
    }
    *out = (struct topic_filter){.filter = filter, .share_name = share_name, .is_shared = is_shared, .has_wildcard = has_wildcard};
    return mqtt_ok();
}

bool topic_matches_filter(struct span filter, struct span topic)
{
    if (filter.size == 0 || topic.size == 0)
        return false;
    if (topic.data[0] == '$' && (filter.data[0] == '+' || filter.data[0] == '#'))
        return false; /* [MQTT-4.7.2-1] */
    struct topic_levels filter_levels = topic_levels_of(filter);
    struct topic_levels topic_levels = topic_levels_of(topic);
    struct span filter_level;
    struct span topic_level;
    while (topic_levels_next(&filter_levels, &filter_level)) {
        if (span_equal(filter_level, SPAN_LITERAL("#")))
            return true; /* also of no level at all: the parent */
        if (!topic_levels_next(&topic_levels, &topic_level))
            return false;
        if (!span_equal(filter_level, SPAN_LITERAL("+")) && !span_equal(filter_level, topic_level))
            return false;
    }
    return !topic_levels_next(&topic_levels, &topic_level);
}

struct topic_levels topic_levels_of(struct span text)
{
    static const uint8_t nothing[1];
    const uint8_t *at = text.data ? text.data : nothing;
    return (struct topic_levels){at, at + text.size};
}

bool topic_levels_next(struct topic_levels *it, struct span *level_out)
{
    if (!it->at)
        return false;
    size_t rest = (size_t)(it->end - it->at);
    const uint8_t *slash = rest ? memchr(it->at, '/', rest) : NULL;
    *level_out = span_of(it->at, slash ? (size_t)(slash - it->at) : rest);
    it->at = slash ? slash + 1 : NULL;
    return true;
}

size_t topic_levels_count(struct span text)
{
    size_t count = 1;
    for (size_t i = 0; i < text.size; i++)
        count += text.data[i] == '/';
    return count;
}
