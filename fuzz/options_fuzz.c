/* Any bytes as a configuration file: no crash, an error or a config within its bounds, and a dump that reads back to the same values. */
#include <string.h>

#include "common/check.h"
#include "common/options.h"
#include "common/utf8.h"
#include "tests/lib/option_demo.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const struct demo_config *config)
{
    CHECK(config->inflight == OPTION_UNLIMITED || (config->inflight >= 1 && config->inflight <= 65535));
    CHECK(config->packet_size_max >= 1024 && config->packet_size_max <= 256 << 20);
    CHECK(config->flush_interval_ns >= 1000000);
    CHECK(config->mode >= DEMO_OFF && config->mode <= DEMO_ENFORCE);
    for (size_t i = 0; i < config->telemetry.count; i++)
        CHECK(config->telemetry.items[i].value[0] != '\0');
    const struct demo_listener *listeners = config->listeners.items;
    CHECK(config->listeners.count >= 1);
    for (size_t i = 0; i < config->listeners.count; i++)
        CHECK(listeners[i].port >= 0 && listeners[i].port <= 65535);
}

static void check_same(const struct demo_config *a, const struct demo_config *b)
{
    CHECK(a->inflight == b->inflight);
    CHECK(a->packet_size_max == b->packet_size_max);
    CHECK(a->queued_bytes_max == b->queued_bytes_max);
    CHECK(a->flush_interval_ns == b->flush_interval_ns);
    CHECK(a->mode == b->mode);
    CHECK(a->telemetry.count == b->telemetry.count);
    for (size_t i = 0; i < a->telemetry.count; i++) {
        CHECK(strcmp(a->telemetry.items[i].key, b->telemetry.items[i].key) == 0);
        CHECK(strcmp(a->telemetry.items[i].value, b->telemetry.items[i].value) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct demo_config config, config_again;
    struct buf text;
    buf_init(&text, (size_t)64 << 20);
    struct options *options = options_new(&demo_table);
    options_parse_text(options, "fuzz.conf", span_of(data, size));
    enum err err = options_finish(options, &config);
    CHECK((err == ERR_OK) == (options_problem_count(options, OPTION_ERROR) == 0));
    options_print_problems(options, &text);
    CHECK(utf8_is_valid(buf_span(&text)));
    if (err == ERR_OK) {
        check_config(&config);
        buf_clear(&text);
        options_dump(options, &text);
        struct options *again = options_new(&demo_table);
        options_parse_text(again, "dump.conf", buf_span(&text));
        CHECK(options_finish(again, &config_again) == ERR_OK);
        check_same(&config, &config_again);
        options_free(again);
    }
    options_free(options);
    buf_deinit(&text);
    return 0;
}
