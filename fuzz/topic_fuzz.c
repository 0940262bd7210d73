/* Any bytes as a filter and a topic, split at the first newline: the checks against a slow second opinion, and the matcher against laws
 * that hold for every filter. */
#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "common/check.h"
#include "common/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool holds(struct span text, uint8_t byte) { return text.size && memchr(text.data, byte, text.size); }

/* The grammar level by level, without a share. */
static bool filter_is_legal(struct span filter)
{
    struct topic_levels it = topic_levels_of(filter);
    struct span level;
    size_t levels_left = topic_levels_count(filter);
    while (topic_levels_next(&it, &level)) {
        levels_left--;
        if ((holds(level, '+') || holds(level, '#')) && level.size != 1)
            return false;
        if (holds(level, '#') && levels_left != 0)
            return false;
    }
    CHECK(levels_left == 0);
    return filter.size != 0;
}

static void check_filter(struct span text)
{
    struct topic_filter filter;
    bool accepted = topic_filter_parse(&filter, text).judgement == MQTT_OK;
    if (text.size > TOPIC_SIZE_MAX || !utf8_is_valid(text)) {
        CHECK(!accepted);
        return;
    }
    if (text.size < 7 || memcmp(text.data, "$share/", 7) != 0) {
        CHECK(accepted == filter_is_legal(text));
        if (!accepted)
            return;
        CHECK(!filter.is_shared);
        CHECK(span_equal(filter.filter, text));
    } else if (accepted) {
        CHECK(filter.is_shared);
        CHECK(filter.share_name.size > 0);
        CHECK(!holds(filter.share_name, '/') && !holds(filter.share_name, '+') && !holds(filter.share_name, '#'));
        CHECK(7 + filter.share_name.size + 1 + filter.filter.size == text.size);
        CHECK(filter_is_legal(filter.filter));
    } else {
        return;
    }
    CHECK(filter.has_wildcard == (holds(filter.filter, '+') || holds(filter.filter, '#')));
}

static void check_matching(struct span filter, struct span topic)
{
    struct topic_filter parsed;
    if (!topic_name_is_valid(topic) || topic_filter_parse(&parsed, filter).judgement != MQTT_OK)
        return;
    bool matched = topic_matches_filter(parsed.filter, topic);
    if (!parsed.has_wildcard)
        CHECK(matched == span_equal(parsed.filter, topic));
    CHECK(topic_matches_filter(topic, topic));
    CHECK(topic_matches_filter(SPAN_LITERAL("#"), topic) == (topic.data[0] != '$'));
    if (matched) {
        size_t filter_levels = topic_levels_count(parsed.filter);
        size_t topic_levels = topic_levels_count(topic);
        bool is_open = parsed.filter.data[parsed.filter.size - 1] == '#';
        CHECK(is_open ? topic_levels + 1 >= filter_levels : topic_levels == filter_levels);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *newline = size ? memchr(data, '\n', size) : NULL;
    struct span filter = span_of(data, newline ? (size_t)(newline - data) : size);
    struct span topic = newline ? span_of(newline + 1, size - filter.size - 1) : span_of(data, size);
    bool name_is_legal =
        topic.size >= 1 && topic.size <= TOPIC_SIZE_MAX && utf8_is_valid(topic) && !holds(topic, '+') && !holds(topic, '#');
    CHECK(topic_name_is_valid(topic) == name_is_legal);
    check_filter(filter);
    check_matching(filter, topic);
    return 0;
}
