/* Lines of any bytes: each that is a legal filter is subscribed to, each that is a legal topic gets a retained value. The topic tree and
 * the retained store must then agree with the slow matcher for every pair, and be empty again when all is taken away. */
#include "broker/mqtt/topic.h"
#include "broker/route/retained.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LINES_MAX 24

struct lines {
    struct span texts[LINES_MAX];
    size_t count;
};

static void lines_add(struct lines *lines, struct span text)
{
    for (size_t i = 0; i < lines->count; i++)
        if (span_equal(lines->texts[i], text))
            return;
    if (lines->count < LINES_MAX)
        lines->texts[lines->count++] = text;
}

static void split(struct lines *filters, struct lines *topics, struct span input)
{
    for (size_t at = 0; at <= input.size;) {
        const uint8_t *begin = input.data + at;
        const uint8_t *newline = at < input.size ? memchr(begin, '\n', input.size - at) : NULL;
        struct span line = span_of(begin, newline != NULL ? (size_t)(newline - begin) : input.size - at);
        struct topic_filter filter;
        if (topic_filter_parse(&filter, line).judgement == MQTT_OK)
            lines_add(filters, filter.filter);
        if (topic_name_is_valid(line))
            lines_add(topics, line);
        at += line.size + 1;
    }
}

static void check_tree(const struct lines *filters, const struct lines *topics)
{
    struct topic_tree *tree = topic_tree_new(1);
    CHECK(tree != NULL);
    struct match_list list;
    match_list_init(&list);
    for (size_t i = 0; i < filters->count; i++) {
        struct subscriber sub = {.number = i};
        bool was_there;
        CHECK(topic_tree_add(tree, &was_there, filters->texts[i], &sub) == ERR_OK);
        CHECK(!was_there);
    }
    for (size_t i = 0; i < topics->count; i++) {
        CHECK(topic_tree_match(tree, NULL, topics->texts[i], &list) == ERR_OK);
        uint32_t found = 0, expected = 0;
        for (size_t j = 0; j < list.count; j++) {
            CHECK((found & 1u << list.matches[j].number) == 0); /* once each */
            found |= 1u << list.matches[j].number;
        }
        for (size_t j = 0; j < filters->count; j++)
            expected |= (uint32_t)topic_matches_filter(filters->texts[j], topics->texts[i]) << j;
        CHECK_MSG(found == expected, "topic %zu: filters %x, expected %x", i, found, expected);
        CHECK(topic_tree_any(tree, NULL, topics->texts[i], &list) == (expected != 0));
    }
    for (size_t i = 0; i < filters->count; i++)
        CHECK(topic_tree_remove(tree, filters->texts[i], i));
    struct topic_tree_stats stats;
    topic_tree_get_stats(tree, &stats);
    CHECK(stats.nodes == 0);
    CHECK(stats.exact_filters + stats.wildcard_filters + stats.subscriptions == 0);
    match_list_deinit(&list);
    topic_tree_free(tree);
}

static void count_up(void *msg) { ++*(int *)msg; }
static void count_down(void *msg) { --*(int *)msg; }

static bool note(void *arg, const struct retained_value *value)
{
    uint32_t bit = 1u << (value->number - 1);
    CHECK((*(uint32_t *)arg & bit) == 0);
    *(uint32_t *)arg |= bit;
    return true;
}

static void check_retained(const struct lines *filters, const struct lines *topics)
{
    int refs = 0;
    struct retained *store = retained_new(1, &(struct retained_limits){.messages_max = LINES_MAX, .bytes_max = LINES_MAX},
                                          &(struct retained_callbacks){.ref = count_up, .unref = count_down}, NULL);
    CHECK(store != NULL);
    for (size_t i = 0; i < topics->count; i++) {
        struct retained_reservation reserved;
        CHECK(retained_reserve(store, &reserved, topics->texts[i], 1));
        CHECK(retained_put(store, topics->texts[i], i + 1, &refs, 1, RETAINED_NO_EXPIRY, &reserved) == RETAINED_STORED);
    }
    for (size_t i = 0; i < filters->count; i++) {
        uint32_t found = 0, expected = 0;
        struct retained_scan *scan = retained_scan_begin(store, filters->texts[i]);
        CHECK(scan != NULL);
        while (retained_scan_step(scan, 0, 1, note, &found)) {
        }
        retained_scan_end(scan);
        for (size_t j = 0; j < topics->count; j++)
            expected |= (uint32_t)topic_matches_filter(filters->texts[i], topics->texts[j]) << j;
        CHECK_MSG(found == expected, "filter %zu: topics %x, expected %x", i, found, expected);
    }
    retained_free(store);
    CHECK(refs == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lines filters = {.count = 0}, topics = {.count = 0};
    split(&filters, &topics, span_of(data, size));
    check_tree(&filters, &topics);
    check_retained(&filters, &topics);
    return 0;
}
