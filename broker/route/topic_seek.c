#include "broker/route/topic_seek.h"

#include <stdlib.h>
#include <string.h>

#include "broker/mqtt/topic.h"
#include "broker/route/topic_index.h"
#include "common/check.h"

struct topic_seek {
    struct span filter; /* in this block */
    uint8_t *key;
    size_t key_size, key_capacity;
    uint8_t filter_bytes[];
};

static bool reserve_key(struct topic_seek *seek, size_t size)
{
    if (seek->key_capacity >= size)
        return true;
    uint8_t *key = realloc(seek->key, size);
    if (key == NULL)
        return false;
    seek->key = key;
    seek->key_capacity = size;
    return true;
}

static void set_key(struct topic_seek *seek, struct span a, struct span b)
{
    CHECK(a.size + b.size <= seek->key_capacity);
    if (a.size > 0)
        memmove(seek->key, a.data, a.size);
    if (b.size > 0)
        memcpy(seek->key + a.size, b.data, b.size);
    seek->key_size = a.size + b.size;
}

static struct span level_at(struct span text, size_t at)
{
    const uint8_t *begin = text.data + at;
    const uint8_t *slash = at < text.size ? memchr(begin, '/', text.size - at) : NULL;
    return span_of(begin, slash != NULL ? (size_t)(slash - begin) : text.size - at);
}

static bool level_is(struct span level, char wildcard) { return level.size == 1 && level.data[0] == (uint8_t)wildcard; }
static bool level_is_wildcard(struct span level) { return level_is(level, '+') || level_is(level, '#'); }

struct topic_seek *topic_seek_new(struct span filter)
{
    CHECK(filter.size > 0);
    CHECK(filter.size <= TOPIC_SIZE_MAX);
    struct topic_seek *seek = calloc(1, sizeof *seek + filter.size);
    if (seek == NULL)
        return NULL;
    seek->filter = span_of(seek->filter_bytes, filter.size);
    memcpy(seek->filter_bytes, filter.data, filter.size);
    /* Begin at the levels in front of the first wildcard ("a/b" for "a/b/#", which the topic "a/b" matches too). */
    size_t prefix = 0;
    for (size_t at = 0; at <= filter.size;) {
        struct span level = level_at(filter, at);
        if (level_is_wildcard(level))
            break;
        prefix = at + level.size;
        at = prefix + 1;
    }
    if (!reserve_key(seek, prefix + 1)) {
        free(seek);
        return NULL;
    }
    set_key(seek, span_of(filter.data, prefix), span_of(NULL, 0));
    return seek;
}

void topic_seek_free(struct topic_seek *seek)
{
    if (seek == NULL)
        return;
    free(seek->key);
    free(seek);
}

struct span topic_seek_key(const struct topic_seek *seek) { return span_of(seek->key, seek->key_size); }
bool topic_seek_reserve(struct topic_seek *seek, size_t topic_size) { return reserve_key(seek, topic_size + seek->filter.size + 2); }
void topic_seek_pause(struct topic_seek *seek, struct span topic) { set_key(seek, topic, span_of(NULL, 0)); }

enum topic_seek_verdict topic_seek_judge(struct topic_seek *seek, struct span topic)
{
    struct span filter = seek->filter;
    if (topic.data[0] == '$' && level_is_wildcard(level_at(filter, 0))) { /* [MQTT-4.7.2-1] */
        set_key(seek, SPAN_LITERAL("%"), span_of(NULL, 0));               /* the byte after '$' */
        return TOPIC_SEEK_ON;
    }
    size_t filter_at = 0, topic_at = 0;
    size_t plus_end = 0; /* end of the last level that a `+` took */
    bool plus = false;
    for (;;) {
        struct span wanted = level_at(filter, filter_at);
        if (level_is(wanted, '#'))
            return TOPIC_SEEK_MATCH;
        if (topic_at > topic.size) { /* the topic has ended, the filter has not: go below the topic */
            set_key(seek, topic, SPAN_LITERAL("/"));
            if (!level_is(wanted, '+')) {
                memcpy(seek->key + seek->key_size, wanted.data, wanted.size);
                seek->key_size += wanted.size;
            }
            return TOPIC_SEEK_ON;
        }
        struct span level = level_at(topic, topic_at);
        if (level_is(wanted, '+')) {
            plus = true;
            plus_end = topic_at + level.size;
        } else if (!span_equal(level, wanted)) {
            if (topic_index_compare(level, wanted) < 0) {
                set_key(seek, span_of(topic.data, topic_at), wanted);
                return TOPIC_SEEK_ON;
            }
            break;
        }
        filter_at += wanted.size + 1;
        topic_at += level.size + 1;
        if (filter_at > filter.size) {
            if (topic_at > topic.size)
                return TOPIC_SEEK_MATCH;
            break; /* deeper than the filter */
        }
    }
    if (!plus)
        return TOPIC_SEEK_END;
    set_key(seek, span_of(topic.data, plus_end), SPAN_LITERAL("\0")); /* past the subtree */
    return TOPIC_SEEK_ON;
}
