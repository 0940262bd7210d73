#include "broker/guard/tier.h"

#include <stdlib.h>
#include <string.h>

#include "broker/mqtt/topic.h"
#include "common/check.h"

#define TIER_COUNT_MAX 1024

const char *durability_name(enum durability durability)
{
    switch (durability) {
    case DURABILITY_LOG:
        return "log";
    case DURABILITY_MEMORY:
        return "memory";
    case DURABILITY_NONE:
        return "none";
    }
    UNREACHABLE();
}

enum err tier_table_add(struct tier_table *table, const char *text, int line, struct errmsg *msg)
{
    if (table->count == TIER_COUNT_MAX)
        return err_set(msg, ERR_FULL, "more than %d lines", TIER_COUNT_MAX);
    /* The tier is the last word: a filter may have spaces in it. */
    size_t end = strlen(text);
    size_t word = end;
    while (word > 0 && text[word - 1] != ' ' && text[word - 1] != '\t')
        word--;
    size_t filter_size = word;
    while (filter_size > 0 && (text[filter_size - 1] == ' ' || text[filter_size - 1] == '\t'))
        filter_size--;
    struct tier_line entry = {.line = line};
    if (strcmp(text + word, "log") == 0)
        entry.durability = DURABILITY_LOG;
    else if (strcmp(text + word, "memory") == 0)
        entry.durability = DURABILITY_MEMORY;
    else
        return err_set(msg, ERR_INVALID, "\"%.40s\" is no tier (expected FILTER memory|log)", text + word);
    struct topic_filter filter;
    struct mqtt_verdict verdict = topic_filter_parse(&filter, span_of(text, filter_size));
    if (verdict.judgement != MQTT_OK || filter.is_shared)
        return err_set(msg, ERR_INVALID, "\"%.*s\" is no topic filter (expected FILTER memory|log)",
                       (int)(filter_size < 80 ? filter_size : 80), text);
    CHECK(filter_size > 0);
    struct tier_line *grown = realloc(table->lines, (table->count + 1u) * sizeof *grown);
    if (grown)
        table->lines = grown;
    uint8_t *bytes = grown ? malloc(filter_size) : NULL;
    if (!bytes)
        return err_set(msg, ERR_NOMEM, "out of memory");
    memcpy(bytes, text, filter_size);
    entry.filter = span_of(bytes, filter_size);
    table->lines[table->count++] = entry;
    return ERR_OK;
}

void tier_table_deinit(struct tier_table *table)
{
    for (uint16_t i = 0; i < table->count; i++)
        free((void *)(uintptr_t)table->lines[i].filter.data);
    free(table->lines);
    *table = (struct tier_table){0};
}

const struct tier_line *tier_table_match(const struct tier_table *table, struct span topic)
{
    for (uint16_t i = 0; i < table->count; i++)
        if (topic_matches_filter(table->lines[i].filter, topic))
            return &table->lines[i];
    return NULL;
}
