/* Tiers: what waits for the log, and what a client that asks is told its answers stand for. With one shard, three, and three whose rings
 * deliver in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static void tier_memory_does_not_wait_its_recipients_do(void **state)
{
    struct rig *rig = RIG(.tiers = "m/# memory\n# log");
    struct rig_client *pub = v5_stay(rig, "pub"), *sub = subscriber(rig, "s", true, "+/x", 2);
    rig_log_hold(rig, true);
    rig_publish(pub, "m/x", "1", 1, 1);
    rig_publish(pub, "m/x", "2", 2, 2);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    expect_ack(pub, MQTT_PUBREC, 2, 0);
    expect_nothing(sub);
    rig_publish(pub, "m/x", "2", 2, 2); /* again: the answer promises as little */
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBREC, 2, 0);
    rig_send_ack(pub, MQTT_PUBREL, 2);
    rig_settle(rig);
    expect_nothing(pub); /* an identifier must not be open after a crash */
    rig_publish(pub, "l/x", "3", 1, 3);
    rig_settle(rig);
    expect_nothing(pub);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBCOMP, 2, 0);
    expect_ack(pub, MQTT_PUBACK, 3, 0);
    expect_payload_at(sub, "1", 1);
    assert_int_equal(rig_published_count(rig), 3);
    rig_free(rig);
}

/* Connected with the wish to be told. */
static struct rig_client *curious(struct rig *rig, const char *id, bool wants_problems, uint32_t packet_size_max)
{
    uint8_t wish[64];
    struct packet connect = rig_connect_packet(id, MQTT_V5, true);
    struct mqtt_properties *props = &connect.connect.properties;
    props->raw = span_of(wish, properties_put_user_property(wish, SPAN_LITERAL("tidegate-report-durability"), SPAN_LITERAL("")));
    props->user_property_count = 1;
    props->present |= MQTT_PROPERTY_BIT(USER_PROPERTY);
    if (!wants_problems) {
        props->request_problem_information = 0;
        props->present |= MQTT_PROPERTY_BIT(REQUEST_PROBLEM_INFORMATION);
    }
    if (packet_size_max) {
        props->maximum_packet_size = packet_size_max;
        props->present |= MQTT_PROPERTY_BIT(MAXIMUM_PACKET_SIZE);
    }
    struct rig_client *client = rig_connect_with(rig, &connect);
    assert_int_equal(expect(client, MQTT_CONNACK)->connack.reason, 0);
    return client;
}

static void expect_told(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id, const char *value)
{
    const struct packet *packet = expect(client, type);
    assert_int_equal(packet->ack.packet_id, packet_id);
    bool has = (packet->ack.properties.present & MQTT_PROPERTY_BIT(USER_PROPERTY)) != 0;
    assert_int_equal(has, value != NULL);
    if (!has)
        return;
    struct span rest = packet->ack.properties.raw, name, text;
    assert_true(properties_next_user_property(&rest, &name, &text));
    assert_true(span_equal(name, SPAN_LITERAL("tidegate-durability")));
    if (!span_equal(text, span_of_string(value)))
        fail_msg("\"%.*s\" is not \"%s\"", (int)text.size, (const char *)text.data, value);
}

static void client_that_asks_is_told_what_answers_stand_for(void **state)
{
    struct rig *rig = RIG(.tiers = "t/m/# memory");
    struct rig_client *pub = curious(rig, "pub", true, 0);
    subscriber(rig, "s", true, "x", 1);
    rig_publish(pub, "t/car/x", "1", 1, 1);
    rig_publish(pub, "t/m/x", "1", 1, 2);
    rig_publish(pub, "nobody", "1", 1, 3);
    rig_publish(pub, "x", "2", 2, 4);
    rig_publish(pub, "x", "2", 2, 4);
    rig_publish(pub, "nobody", "2", 2, 5);
    rig_publish(pub, "nobody", "2", 2, 5);
    rig_send_ack(pub, MQTT_PUBREL, 4);
    rig_settle(rig);
    expect_told(pub, MQTT_PUBACK, 1, "log");
    expect_told(pub, MQTT_PUBACK, 2, "memory");
    expect_told(pub, MQTT_PUBACK, 3, "none");
    expect_told(pub, MQTT_PUBREC, 4, "log");
    expect_told(pub, MQTT_PUBREC, 4, "log");
    expect_told(pub, MQTT_PUBREC, 5, "none");
    expect_told(pub, MQTT_PUBREC, 5, "none");
    expect_told(pub, MQTT_PUBCOMP, 4, NULL);
    struct rig_client *modest = curious(rig, "modest", false, 0); /* 3.1.2-29 */
    rig_publish(modest, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    expect_told(modest, MQTT_PUBACK, 1, NULL);
    struct rig_client *tiny = curious(rig, "tiny", true, 30); /* 3.4.2-3 */
    rig_publish(tiny, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    expect_told(tiny, MQTT_PUBACK, 1, NULL);
    struct rig_client *silent = v5(rig, "silent");
    rig_publish(silent, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    expect_told(silent, MQTT_PUBACK, 1, NULL);
    rig_free(rig);
}

static void without_a_log_the_answer_says_none(void **state)
{
    struct rig *rig = RIG(.no_persistence = true, .tiers = "# memory");
    struct rig_client *pub = curious(rig, "pub", true, 0);
    subscriber(rig, "s", true, "x", 1);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    expect_told(pub, MQTT_PUBACK, 1, "none");
    rig_free(rig);
}

static void large_record_waits_as_its_tier_says(void **state)
{
    struct rig *rig = RIG(.tiers = "m memory", .body_max = 1024, .block_count = 64);
    struct rig_client *pub = curious(rig, "pub", true, 0), *stay = subscriber(rig, "s", true, "+", 1);
    char large[5000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    rig_log_hold(rig, true);
    rig_publish(pub, "m", large, 1, 1);
    rig_settle(rig);
    expect_told(pub, MQTT_PUBACK, 1, "memory");
    expect_nothing(stay);
    rig_publish(pub, "l", large, 1, 2);
    rig_settle(rig);
    expect_nothing(pub);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_told(pub, MQTT_PUBACK, 2, "log");
    expect_payload_at(stay, large, 1);
    expect_payload_at(stay, large, 1);
    assert_int_equal(gauge_get(&rig_stats(rig, 0)->telemetry_logging), 0);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(tier_memory_does_not_wait_its_recipients_do),
        IN_EACH_MODE(client_that_asks_is_told_what_answers_stand_for),
        IN_EACH_MODE(without_a_log_the_answer_says_none),
        IN_EACH_MODE(large_record_waits_as_its_tier_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
