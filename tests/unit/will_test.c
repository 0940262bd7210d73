/* A will is a copy of what CONNECT said. */
#include "broker/session/will.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void keeps_what_connect_said(void **state)
{
    (void)state;
    uint8_t user[32];
    size_t size = properties_put_user_property(user, SPAN_LITERAL("k"), SPAN_LITERAL("v"));
    struct packet_connect connect = {.version = MQTT_V5, .has_will = true, .will_retain = true, .will_qos = 2, .has_user_name = true};
    connect.user_name = SPAN_LITERAL("user");
    connect.will_topic = SPAN_LITERAL("w/t");
    connect.will_payload = SPAN_LITERAL("gone");
    connect.will_properties.raw = span_of(user, size);
    connect.will_properties.present =
        MQTT_PROPERTY_BIT(USER_PROPERTY) | MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL) | MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL);
    connect.will_properties.will_delay_interval_s = 5;
    connect.will_properties.message_expiry_interval_s = 0; /* legal */
    struct will *will = will_new(&connect, SPAN_LITERAL("id"), 7);
    memset(user, 0, sizeof user); /* a copy */
    assert_true(span_equal(will->topic, SPAN_LITERAL("w/t")));
    assert_true(span_equal(will->payload, SPAN_LITERAL("gone")));
    assert_true(span_equal(will->client_id, SPAN_LITERAL("id")));
    assert_true(span_equal(will->user_name, SPAN_LITERAL("user")));
    struct span rest = will->properties, name, value;
    assert_true(properties_next_user_property(&rest, &name, &value));
    assert_true(span_equal(name, SPAN_LITERAL("k")));
    assert_int_equal(will->delay_s, 5);
    assert_true(will->has_expiry);
    assert_int_equal(will->expiry_interval_s, 0);
    assert_int_equal(will->publisher, 7);
    assert_int_equal(will->qos, 2);
    assert_true(will->retain);
    will_free(will);
}

static void may_be_empty(void **state)
{
    (void)state;
    struct packet_connect connect = {.version = MQTT_V311, .has_will = true, .will_topic = SPAN_LITERAL("w")};
    struct will *will = will_new(&connect, SPAN_LITERAL("id"), 7);
    assert_int_equal(will->payload.size, 0);
    assert_int_equal(will->properties.size, 0);
    assert_int_equal(will->delay_s, 0);
    assert_false(will->has_expiry);
    will_free(will);
    will_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(keeps_what_connect_said), cmocka_unit_test(may_be_empty)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
