/* Rules are few (tens) and matched for every PUBLISH, so they are compiled to plain filters once and walked level by level without
 * allocation. A filter's only wildcards are `+` (a level, {device} among them) and a last `#`. */
#include "broker/telemetry/rule.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"

#define RULE_COUNT_MAX 1024
#define RULE_LEVELS_MAX 1000 /* a pattern is written by a person: far below the 32768 levels of a legal filter */
#define DEVICE_PLACEHOLDER "{device}"

static bool span_is(struct span span, const char *text) { return span_equal(span, span_of_string(text)); }

/* The next level of [at, end): advances *at behind the slash. False when there is none left. An empty text has one empty level. */
static bool next_level(struct span *level_out, const uint8_t **at, const uint8_t *end)
{
    if (*at > end)
        return false;
    const uint8_t *slash = memchr(*at, '/', (size_t)(end - *at));
    const uint8_t *stop = slash ? slash : end;
    *level_out = span_of(*at, (size_t)(stop - *at));
    *at = stop + 1;
    return true;
}

/* What of the filter can be compared without walking its levels. */
static void find_literals(struct rule *rule)
{
    const uint8_t *begin = (const uint8_t *)rule->filter, *at = begin, *end = begin + rule->filter_size;
    struct span level;
    for (uint16_t index = 0; next_level(&level, &at, end); index++) {
        bool is_plus = span_is(level, "+");
        if (!is_plus && !span_is(level, "#"))
            continue;
        if (is_plus && rule->tail_at == 0) {
            rule->head_size = (uint16_t)(level.data - begin);
            rule->head_levels = index;
        }
        rule->tail_at = (uint32_t)(at - begin);
    }
}

static enum err compile_pattern(struct rule *rule, struct span pattern, struct errmsg *msg)
{
    const uint8_t *at = pattern.data, *end = pattern.data + pattern.size;
    struct span level;
    char *out = rule->filter = malloc(pattern.size + 1);
    if (!out)
        return err_set(msg, ERR_NOMEM, "out of memory");
    rule->device_level = UINT16_MAX;
    bool hash_seen = false;
    uint16_t levels = 0;
    while (next_level(&level, &at, end)) {
        if (hash_seen)
            return err_set(msg, ERR_INVALID, "'#' must be the last level");
        if (levels == RULE_LEVELS_MAX)
            return err_set(msg, ERR_INVALID, "more than %d levels", RULE_LEVELS_MAX);
        if (levels > 0)
            *out++ = '/';
        if (span_is(level, DEVICE_PLACEHOLDER)) {
            if (rule->device_level != UINT16_MAX)
                return err_set(msg, ERR_INVALID, "{device} stands twice; it may stand once");
            if (rule->ignore)
                return err_set(msg, ERR_INVALID, "a telemetry_ignore line takes a filter without {device}");
            rule->device_level = levels;
            *out++ = '+';
        } else {
            bool wildcard = span_is(level, "+") || span_is(level, "#");
            bool placeholder = level.size && (memchr(level.data, '{', level.size) || memchr(level.data, '}', level.size));
            if (placeholder)
                return err_set(msg, ERR_INVALID, "unknown placeholder '%.*s': only {device}, as a whole level, is known", (int)level.size,
                               (const char *)level.data);
            if (!wildcard && level.size && (memchr(level.data, '+', level.size) || memchr(level.data, '#', level.size)))
                return err_set(msg, ERR_INVALID, "'%.*s': a wildcard takes a whole level", (int)level.size, (const char *)level.data);
            hash_seen = span_is(level, "#");
            if (level.size)
                memcpy(out, level.data, level.size);
            out += level.size;
        }
        levels++;
    }
    *out = '\0';
    rule->filter_size = (uint16_t)(out - rule->filter);
    find_literals(rule);
    return ERR_OK;
}

static enum err parse_option(struct rule *rule, struct span key, struct span value, struct errmsg *msg)
{
    if (span_is(key, "name")) {
        if (value.size == 0 || value.size > 64)
            return err_set(msg, ERR_INVALID, "name= takes 1 to 64 bytes");
        free(rule->name);
        rule->name = strndup((const char *)value.data, value.size);
        return rule->name ? ERR_OK : err_set(msg, ERR_NOMEM, "out of memory");
    }
    if (span_is(key, "device")) {
        if (span_is(value, "topic"))
            rule->device_source = RULE_DEVICE_TOPIC;
        else if (span_is(value, "client_id"))
            rule->device_source = RULE_DEVICE_CLIENT_ID;
        else if (span_is(value, "user_name"))
            rule->device_source = RULE_DEVICE_USER_NAME;
        else
            return err_set(msg, ERR_INVALID, "device= takes topic, client_id or user_name");
        return ERR_OK;
    }
    if (span_is(key, "max_qos")) {
        if (value.size != 1 || value.data[0] < '0' || value.data[0] > '2')
            return err_set(msg, ERR_INVALID, "max_qos= takes 0, 1 or 2");
        rule->max_qos = (uint8_t)(value.data[0] - '0');
        return ERR_OK;
    }
    if (span_is(key, "on_no_device")) {
        if (span_is(value, "refuse"))
            rule->on_no_device = RULE_NO_DEVICE_REFUSE;
        else if (span_is(value, "client_id"))
            rule->on_no_device = RULE_NO_DEVICE_CLIENT_ID;
        else if (span_is(value, "skip"))
            rule->on_no_device = RULE_NO_DEVICE_SKIP;
        else
            return err_set(msg, ERR_INVALID, "on_no_device= takes refuse, client_id or skip");
        return ERR_OK;
    }
    return err_set(msg, ERR_INVALID, "unknown option '%.*s': known are name=, device=, max_qos= and on_no_device=", (int)key.size,
                   (const char *)key.data);
}

/* The next blank-separated word. */
static bool next_word(struct span *word_out, const char **at)
{
    *at += strspn(*at, " \t");
    size_t size = strcspn(*at, " \t");
    *word_out = span_of(*at, size);
    *at += size;
    return size > 0;
}

static enum err rule_parse(struct rule *rule, const char *text, struct errmsg *msg)
{
    struct span pattern, word;
    bool device_given = false;
    if (!next_word(&pattern, &text))
        return err_set(msg, ERR_INVALID, "a topic pattern is missing, such as fleet/{device}/telemetry");
    if (pattern.size > UINT16_MAX)
        return err_set(msg, ERR_INVALID, "the pattern is longer than 65535 bytes");
    enum err err = compile_pattern(rule, pattern, msg);
    while (err == ERR_OK && next_word(&word, &text)) {
        const uint8_t *equals = memchr(word.data, '=', word.size);
        if (!equals)
            return err_set(msg, ERR_INVALID, "'%.*s': expected option=value", (int)word.size, (const char *)word.data);
        if (rule->ignore)
            return err_set(msg, ERR_INVALID, "a telemetry_ignore line takes no options");
        struct span key = span_of(word.data, (size_t)(equals - word.data));
        device_given |= span_is(key, "device");
        err = parse_option(rule, key, span_of(equals + 1, word.size - key.size - 1), msg);
    }
    if (err)
        return err;
    bool in_topic = rule->device_level != UINT16_MAX;
    if (!device_given)
        rule->device_source = in_topic ? RULE_DEVICE_TOPIC : RULE_DEVICE_CLIENT_ID;
    if (rule->device_source == RULE_DEVICE_TOPIC && !in_topic && !rule->ignore)
        return err_set(msg, ERR_INVALID, "device=topic needs {device} as a level of the pattern");
    if (rule->device_source != RULE_DEVICE_TOPIC && in_topic)
        return err_set(msg, ERR_INVALID, "the pattern names {device}, and device= says it comes from elsewhere");
    if (!rule->name)
        rule->name = strndup((const char *)pattern.data, pattern.size);
    if (!rule->name)
        return err_set(msg, ERR_NOMEM, "out of memory");
    rule->name_size = (uint16_t)strlen(rule->name);
    return ERR_OK;
}

static void rule_deinit(struct rule *rule)
{
    free(rule->name);
    free(rule->filter);
}

enum err rule_table_add(struct rule_table *table, const char *text, bool ignore, int line, struct errmsg *msg)
{
    struct rule rule = {.ignore = ignore, .line = line, .max_qos = 2};
    if (table->count == RULE_COUNT_MAX)
        return err_set(msg, ERR_TOOLARGE, "more than %d telemetry rules", RULE_COUNT_MAX);
    enum err err = rule_parse(&rule, text, msg);
    if (!err) {
        struct rule *grown = realloc(table->rules, (table->count + 1u) * sizeof rule);
        if (grown) {
            table->rules = grown;
            table->rules[table->count++] = rule;
            return ERR_OK;
        }
        err = err_set(msg, ERR_NOMEM, "out of memory");
    }
    rule_deinit(&rule);
    return err;
}

void rule_table_deinit(struct rule_table *table)
{
    for (uint16_t i = 0; i < table->count; i++)
        rule_deinit(&table->rules[i]);
    free(table->rules);
    *table = (struct rule_table){0};
}

/* Does the rule's filter match, and what stands at the {device} level? */
static bool rule_matches(const struct rule *rule, struct span *device_out, struct span topic)
{
    const uint8_t *filter = (const uint8_t *)rule->filter, *filter_end = filter + rule->filter_size;
    const uint8_t *filter_at = filter + rule->head_size, *tail = filter + rule->tail_at;
    const uint8_t *topic_at = topic.data + rule->head_size, *topic_end = topic.data + topic.size;
    struct span want, level;
    if (topic.size && topic.data[0] == '$' && (*filter == '+' || *filter == '#')) /* [MQTT-4.7.2-1] */
        return false;
    if (topic.size < rule->head_size || memcmp(topic.data, filter, rule->head_size) != 0)
        return false;
    for (uint16_t index = rule->head_levels; filter_at != tail && next_level(&want, &filter_at, filter_end); index++) {
        if (span_is(want, "#"))
            return true;
        if (!next_level(&level, &topic_at, topic_end))
            return false;
        if (index == rule->device_level)
            *device_out = level;
        else if (!span_is(want, "+") && !span_equal(want, level))
            return false;
    }
    if (filter_at > filter_end || topic_at > topic_end)
        return filter_at > filter_end && topic_at > topic_end;
    return span_equal(span_of(filter_at, (size_t)(filter_end - filter_at)), span_of(topic_at, (size_t)(topic_end - topic_at)));
}

static enum rule_verdict rule_find_device(const struct rule *rule, struct span *device, const struct rule_subject *subject)
{
    switch ((enum rule_device_source)rule->device_source) {
    case RULE_DEVICE_TOPIC:
        break;
    case RULE_DEVICE_CLIENT_ID:
        *device = subject->client_id;
        break;
    case RULE_DEVICE_USER_NAME:
        *device = subject->user_name;
        break;
    }
    if (device->size)
        return RULE_MATCH;
    switch ((enum rule_no_device)rule->on_no_device) {
    case RULE_NO_DEVICE_REFUSE:
        return RULE_REFUSE;
    case RULE_NO_DEVICE_CLIENT_ID:
        *device = subject->client_id;
        return device->size ? RULE_MATCH : RULE_REFUSE;
    case RULE_NO_DEVICE_SKIP:
        return RULE_SKIPPED;
    }
    UNREACHABLE();
}

enum rule_verdict rule_table_match(const struct rule_table *table, const struct rule **rule_out, struct span *device_out,
                                   const struct rule_subject *subject)
{
    for (uint16_t i = 0; i < table->count; i++) {
        const struct rule *rule = &table->rules[i];
        struct span device = {0};
        if (!rule_matches(rule, &device, subject->topic))
            continue;
        if (rule->ignore)
            return RULE_NONE;
        *rule_out = rule;
        enum rule_verdict verdict = rule_find_device(rule, &device, subject);
        *device_out = device;
        return verdict;
    }
    return RULE_NONE;
}
