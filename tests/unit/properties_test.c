#include "broker/mqtt/properties.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/mqtt/frame.h"
#include "tests/lib/packet_equal.h"
#include "tests/lib/wire.h"

#define OK 0

/* Decode a block from exact memory; returns the reason, OK for a good one that used every byte. */
static unsigned decode(struct mqtt_properties *out, uint8_t **memory_out, const char *notation, enum mqtt_packet_type type,
                       enum mqtt_sender sender)
{
    uint8_t bytes[4096];
    size_t size = wire_bytes(bytes, notation);
    uint8_t *exact = malloc(size ? size : 1);
    memcpy(exact, bytes, size);
    *memory_out = exact;
    size_t used = 0;
    struct mqtt_verdict verdict = properties_decode(out, &used, type, sender, exact, exact + size);
    if (verdict.judgement == MQTT_OK) {
        assert_int_equal(used, size);
        assert_null(verdict.text);
        return OK;
    }
    assert_non_null(verdict.text);
    return verdict.reason;
}

static void expect(const char *notation, enum mqtt_packet_type type, enum mqtt_sender sender, unsigned reason)
{
    struct mqtt_properties props;
    uint8_t *memory;
    unsigned got = decode(&props, &memory, notation, type, sender);
    if (got != reason)
        fail_msg("%s in %s from %s: 0x%02x, expected 0x%02x", notation, type == MQTT_WILL ? "WILL" : mqtt_packet_name(type),
                 sender == MQTT_FROM_CLIENT ? "client" : "server", got, reason);
    free(memory);
}

/* Written down a second time, from section 2.2.2.2, so that the table can be wrong. C: from a client only, S: from a server only. */
static const struct {
    unsigned id;
    const char *value; /* a legal one */
    const char *packets;
} expected_table[] = {
    {0x01, "01", "PUBLISH WILL"},
    {0x02, "00000000", "PUBLISH WILL"},
    {0x03, "s'json'", "PUBLISH WILL"},
    {0x08, "s'answer/here'", "PUBLISH WILL"},
    {0x09, "0003 00ff01", "PUBLISH WILL"},
    {0x0b, "01", "S:PUBLISH SUBSCRIBE"},
    {0x11, "ffffffff", "CONNECT CONNACK C:DISCONNECT"},
    {0x12, "s'id'", "CONNACK"},
    {0x13, "0000", "CONNACK"},
    {0x15, "s'SCRAM'", "CONNECT CONNACK AUTH"},
    {0x16, "0001 00", "CONNECT CONNACK AUTH"},
    {0x17, "00", "CONNECT"},
    {0x18, "00000005", "WILL"},
    {0x19, "01", "CONNECT"},
    {0x1a, "s'info'", "CONNACK"},
    {0x1c, "s'other'", "CONNACK S:DISCONNECT"},
    {0x1f, "s'why'", "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"},
    {0x21, "0001", "CONNECT CONNACK"},
    {0x22, "0000", "CONNECT CONNACK"},
    {0x23, "0001", "PUBLISH"},
    {0x24, "01", "CONNACK"},
    {0x25, "00", "CONNACK"},
    {0x26, "s'k' s'v'", "CONNECT CONNACK PUBLISH WILL PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK DISCONNECT AUTH"},
    {0x27, "00000001", "CONNECT CONNACK"},
    {0x28, "01", "CONNACK"},
    {0x29, "01", "CONNACK"},
    {0x2a, "01", "CONNACK"},
};

static bool side_sends(enum mqtt_packet_type type, enum mqtt_sender sender)
{
    if (type == MQTT_WILL)
        return sender == MQTT_FROM_CLIENT;
    const struct mqtt_packet_spec *spec = mqtt_packet_spec(type);
    return sender == MQTT_FROM_CLIENT ? spec->from_client : spec->from_server;
}

static bool table_allows(const char *packets, const char *name, enum mqtt_sender sender)
{
    char words[256];
    snprintf(words, sizeof words, "%s", packets);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        char side = 0;
        if (word[1] == ':') {
            side = word[0];
            word += 2;
        }
        if (strcmp(word, name) == 0)
            return side == 0 || side == (sender == MQTT_FROM_CLIENT ? 'C' : 'S');
    }
    return false;
}

static void test_each_property_in_each_packet(void **state)
{
    (void)state;
    const size_t row_count = sizeof expected_table / sizeof expected_table[0];
    assert_int_equal(row_count, 27);
    for (size_t i = 0; i < row_count; i++)
        for (unsigned type = 0; type <= 15; type++)
            for (unsigned sender = 0; sender < 2; sender++) {
                if (type == MQTT_PINGREQ || type == MQTT_PINGRESP || !side_sends(type, sender))
                    continue;
                char notation[64];
                snprintf(notation, sizeof notation, "p( %02x %s )", expected_table[i].id, expected_table[i].value);
                struct mqtt_properties props;
                uint8_t *memory;
                bool allowed = decode(&props, &memory, notation, type, sender) == OK;
                free(memory);
                const char *name = type == MQTT_WILL ? "WILL" : mqtt_packet_name(type);
                if (allowed != table_allows(expected_table[i].packets, name, sender))
                    fail_msg("property 0x%02x in %s from side %u: allowed %d", expected_table[i].id, name, sender, allowed);
            }
}

static void test_each_property_cut_short_at_each_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof expected_table / sizeof expected_table[0]; i++) {
        uint8_t property[64];
        char notation[64];
        snprintf(notation, sizeof notation, "%02x %s", expected_table[i].id, expected_table[i].value);
        size_t size = wire_bytes(property, notation);
        for (size_t cut = 1; cut < size; cut++)
            for (unsigned type = 0; type <= 15; type++)
                for (unsigned sender = 0; sender < 2; sender++) {
                    uint8_t *exact = malloc(1 + cut);
                    exact[0] = (uint8_t)cut;
                    memcpy(exact + 1, property, cut);
                    struct mqtt_properties props;
                    size_t used;
                    assert_int_equal(properties_decode(&props, &used, type, sender, exact, exact + 1 + cut).judgement, MQTT_BAD);
                    free(exact);
                }
    }
}

static void test_each_property_at_most_once_MQTT_3_1_4_1(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof expected_table / sizeof expected_table[0]; i++)
        for (unsigned type = 0; type <= 15; type++)
            for (unsigned sender = 0; sender < 2; sender++) {
                const char *name = type == MQTT_WILL ? "WILL" : mqtt_packet_name(type);
                if (!table_allows(expected_table[i].packets, name, sender) || !side_sends(type, sender))
                    continue;
                bool repeatable = expected_table[i].id == 0x26 || (expected_table[i].id == 0x0b && type == MQTT_PUBLISH);
                char notation[128];
                snprintf(notation, sizeof notation, "p( %02x %s %02x %s )", expected_table[i].id, expected_table[i].value,
                         expected_table[i].id, expected_table[i].value);
                expect(notation, type, sender, repeatable ? OK : 0x82);
            }
}

static void test_values_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const char *notation;
        enum mqtt_packet_type type;
        enum mqtt_sender sender;
        unsigned reason;
    } cases[] = {
        {"receive maximum 0", "p( 21 0000 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x82},
        {"maximum packet size 0", "p( 27 00000000 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-3.3.2-8 topic alias 0", "p( 23 0000 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x94},
        {"subscription identifier 0", "p( 0b 00 )", MQTT_SUBSCRIBE, MQTT_FROM_CLIENT, 0x82},
        {"subscription identifier largest", "p( 0b ffffff7f )", MQTT_SUBSCRIBE, MQTT_FROM_CLIENT, OK},
        {"MQTT-1.5.5-1 subscription identifier not minimal", "p( 0b 8100 )", MQTT_SUBSCRIBE, MQTT_FROM_CLIENT, 0x81},
        {"subscription identifier of 5 bytes", "p( 0b 8080808001 )", MQTT_SUBSCRIBE, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-3.3.4-6 subscription identifier in a client's PUBLISH", "p( 0b 05 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-3.14.2-2 session expiry in a server's DISCONNECT", "p( 11 00000000 )", MQTT_DISCONNECT, MQTT_FROM_SERVER, 0x82},
        {"payload format 2", "p( 01 02 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x82},
        {"request problem information 2", "p( 17 02 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x82},
        {"request response information 2", "p( 19 02 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-3.2.2-9 maximum QoS 2", "p( 24 02 )", MQTT_CONNACK, MQTT_FROM_SERVER, 0x82},
        {"retain available 2", "p( 25 02 )", MQTT_CONNACK, MQTT_FROM_SERVER, 0x82},
        {"wildcard available 2", "p( 28 02 )", MQTT_CONNACK, MQTT_FROM_SERVER, 0x82},
        {"identifiers available 2", "p( 29 02 )", MQTT_CONNACK, MQTT_FROM_SERVER, 0x82},
        {"shared available 2", "p( 2a 02 )", MQTT_CONNACK, MQTT_FROM_SERVER, 0x82},
        {"MQTT-3.3.2-13 response topic not UTF-8", "p( 08 0001 ff )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-3.3.2-14 response topic with #", "p( 08 s'a/#' )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-3.3.2-14 response topic with +", "p( 08 s'+/a' )", MQTT_WILL, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-4.7.3-1 response topic empty", "p( 08 0000 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x82},
        {"MQTT-3.3.2-19 content type not UTF-8", "p( 03 0002 c328 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.4-2 content type with U+0000", "p( 03 0003 410042 )", MQTT_PUBLISH, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.4-1 reason string with a surrogate", "p( 1f 0003 eda080 )", MQTT_PUBACK, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.7-1 user property's name not UTF-8", "p( 26 0001 ff s'v' )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.7-1 user property's value not UTF-8", "p( 26 s'k' 0001 ff )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.7-1 user property's value with U+0000", "p( 26 s'k' 0001 00 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"empty user property", "p( 26 0000 0000 )", MQTT_CONNECT, MQTT_FROM_CLIENT, OK},
        {"correlation data is binary", "p( 09 0002 00ff )", MQTT_PUBLISH, MQTT_FROM_CLIENT, OK},
        {"identifier 0", "p( 00 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"identifier 0x04", "p( 04 00 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"identifier 0x2b", "p( 2b 00 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"identifier 0x7f", "p( 7f 00 )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"identifier of two bytes", "p( a601 s'k' s'v' )", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"MQTT-1.5.5-1 property length not minimal", "8000", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"property length missing", "", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"property length larger than the packet", "04 210001", MQTT_CONNECT, MQTT_FROM_CLIENT, 0x81},
        {"no properties", "00", MQTT_CONNECT, MQTT_FROM_CLIENT, OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mqtt_properties props;
        uint8_t *memory;
        unsigned got = decode(&props, &memory, cases[i].notation, cases[i].type, cases[i].sender);
        free(memory);
        if (got != cases[i].reason)
            fail_msg("%s: 0x%02x, expected 0x%02x", cases[i].name, got, cases[i].reason);
    }
}

static void test_values_read(void **state)
{
    (void)state;
    struct mqtt_properties props;
    uint8_t *memory;
    assert_int_equal(decode(&props, &memory,
                            "p( 11 00000e10 21 0014 22 000a 26 s'a' s'1' 27 00010000 17 00 26 s'a' s'2' 15 s'PLAIN' 16 0002 0001 )",
                            MQTT_CONNECT, MQTT_FROM_CLIENT),
                     OK);
    assert_int_equal(props.session_expiry_interval_s, 3600);
    assert_int_equal(props.receive_maximum, 20);
    assert_int_equal(props.topic_alias_maximum, 10);
    assert_int_equal(props.maximum_packet_size, 65536);
    assert_int_equal(props.request_problem_information, 0);
    assert_true(span_equal(props.authentication_method, SPAN_LITERAL("PLAIN")));
    assert_true(span_equal(props.authentication_data, span_of("\0\1", 2)));
    assert_false(props.present & MQTT_PROPERTY_BIT(REQUEST_RESPONSE_INFORMATION));
    assert_int_equal(props.user_property_count, 2);
    struct span rest = props.raw;
    struct span name, value;
    assert_true(properties_next_user_property(&rest, &name, &value));
    assert_true(span_equal(value, SPAN_LITERAL("1")));
    assert_true(properties_next_user_property(&rest, &name, &value));
    assert_true(span_equal(value, SPAN_LITERAL("2")));
    assert_false(properties_next_user_property(&rest, &name, &value));
    free(memory);

    assert_int_equal(decode(&props, &memory, "p( 0b 8001 23 0007 0b 05 02 0000003c )", MQTT_PUBLISH, MQTT_FROM_SERVER), OK);
    assert_int_equal(props.subscription_identifier_count, 2);
    assert_int_equal(props.subscription_identifier, 128);
    assert_int_equal(props.topic_alias, 7);
    assert_int_equal(props.message_expiry_interval_s, 60);
    rest = props.raw;
    uint32_t id;
    assert_true(properties_next_subscription_identifier(&rest, &id));
    assert_int_equal(id, 128);
    assert_true(properties_next_subscription_identifier(&rest, &id));
    assert_int_equal(id, 5);
    assert_false(properties_next_subscription_identifier(&rest, &id));
    free(memory);
}

static void test_encoding_writes_what_is_present(void **state)
{
    (void)state;
    uint8_t user[32];
    size_t user_size = properties_put_user_property(user, SPAN_LITERAL("k"), SPAN_LITERAL("v1"));
    user_size += properties_put_user_property(user + user_size, SPAN_LITERAL("k"), SPAN_LITERAL("v2"));
    assert_int_equal(user_size, 2 * properties_user_property_size(SPAN_LITERAL("k"), SPAN_LITERAL("v1")));
    struct mqtt_properties props = {
        .present = MQTT_PROPERTY_BIT(ASSIGNED_CLIENT_IDENTIFIER) | MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM) |
                   MQTT_PROPERTY_BIT(MAXIMUM_PACKET_SIZE) | MQTT_PROPERTY_BIT(RETAIN_AVAILABLE) | MQTT_PROPERTY_BIT(USER_PROPERTY),
        .raw = span_of(user, user_size),
        .assigned_client_identifier = SPAN_LITERAL("x1"),
        .receive_maximum = 258,
        .maximum_packet_size = 0x01020304,
        .retain_available = 1,
        .server_keep_alive_s = 9, /* not present */
    };
    uint8_t bytes[64];
    uint8_t expected[64];
    size_t expected_size = wire_bytes(expected, "12 s'x1' 21 0102 25 01 27 01020304 26 s'k' s'v1' 26 s'k' s'v2'");
    assert_int_equal(properties_size(&props), expected_size);
    assert_int_equal(properties_put(bytes, &props), expected_size);
    assert_memory_equal(bytes, expected, expected_size);

    props.present &= ~MQTT_PROPERTY_BIT(USER_PROPERTY);
    assert_int_equal(properties_size(&props), expected_size - user_size);
    props.present = 0;
    assert_int_equal(properties_size(&props), 0);
    assert_int_equal(properties_put(bytes, &props), 0);
}

static void test_forwarding_a_publish_MQTT_3_3_2_4_and_15_to_20(void **state)
{
    (void)state;
    uint8_t raw[256];
    size_t raw_size =
        wire_bytes(raw, "26 s'b' s'1' 02 0000003c 08 s'r/t' 23 0005 26 s'a' s'2' 01 01 09 0002 00ff 18 00000009 03 s'json' 0b 05");
    uint8_t expected[256];
    size_t expected_size = wire_bytes(expected, "26 s'b' s'1' 08 s'r/t' 26 s'a' s'2' 01 01 09 0002 00ff 03 s'json'");
    uint8_t forwardable[256];
    assert_int_equal(properties_forwardable_size(span_of(raw, raw_size)), expected_size);
    assert_int_equal(properties_forwardable_put(forwardable, span_of(raw, raw_size)), expected_size);
    assert_memory_equal(forwardable, expected, expected_size);
    /* What is forwardable stays as it is. */
    assert_int_equal(properties_forwardable_put(raw, span_of(forwardable, expected_size)), expected_size);
    assert_memory_equal(raw, expected, expected_size);

    static const uint32_t ids[] = {5, 300, MQTT_VARINT_MAX};
    struct properties_forward forward = {
        .has_message_expiry = true,
        .message_expiry_interval_s = 7,
        .topic_alias = 3,
        .subscription_identifiers = ids,
        .subscription_identifier_count = 3,
    };
    uint8_t own[64];
    size_t own_size = wire_bytes(expected, "02 00000007 23 0003 0b 05 0b ac02 0b ffffff7f");
    assert_int_equal(properties_forward_own_size(&forward), own_size);
    assert_int_equal(properties_forward_own_put(own, &forward), own_size);
    assert_memory_equal(own, expected, own_size);
    assert_int_equal(properties_forward_own_size(&(struct properties_forward){0}), 0);
    assert_int_equal(properties_forwardable_size((struct span){NULL, 0}), 0);
}

static void test_names_of_the_tables(void **state)
{
    (void)state;
    assert_string_equal(mqtt_packet_name(3), "PUBLISH");
    assert_string_equal(mqtt_packet_name(0), "reserved");
    assert_string_equal(mqtt_packet_name(16), "reserved");
    assert_string_equal(mqtt_property_name(0x23), "TOPIC_ALIAS");
    assert_string_equal(mqtt_property_name(0x04), "unknown");
    assert_string_equal(mqtt_reason_name(MQTT_SUBACK, 0), "Granted QoS 0");
    assert_string_equal(mqtt_reason_name(MQTT_PUBACK, 0), "Success");
    assert_string_equal(mqtt_reason_name(MQTT_DISCONNECT, 0), "Normal disconnection");
    assert_string_equal(mqtt_reason_name(MQTT_PUBREL, 0x92), "Packet Identifier not found");
    assert_string_equal(mqtt_reason_name(MQTT_PUBREL, 0x91), "unknown");
}

/* The sets of 3.2.2.2, 3.4.2.1 ... written down a second time. */
static void test_reason_codes_of_each_packet(void **state)
{
    (void)state;
    static const struct {
        enum mqtt_packet_type type;
        enum mqtt_sender sender;
        const char *codes;
    } rows[] = {
        {MQTT_CONNACK, MQTT_FROM_SERVER, "00 80 81 82 83 84 85 86 87 88 89 8a 8c 90 95 97 99 9a 9b 9c 9d 9f"},
        {MQTT_PUBACK, MQTT_FROM_CLIENT, "00 10 80 83 87 90 91 97 99"},
        {MQTT_PUBACK, MQTT_FROM_SERVER, "00 10 80 83 87 90 91 97 99"},
        {MQTT_PUBREC, MQTT_FROM_CLIENT, "00 10 80 83 87 90 91 97 99"},
        {MQTT_PUBREC, MQTT_FROM_SERVER, "00 10 80 83 87 90 91 97 99"},
        {MQTT_PUBREL, MQTT_FROM_CLIENT, "00 92"},
        {MQTT_PUBREL, MQTT_FROM_SERVER, "00 92"},
        {MQTT_PUBCOMP, MQTT_FROM_CLIENT, "00 92"},
        {MQTT_PUBCOMP, MQTT_FROM_SERVER, "00 92"},
        {MQTT_SUBACK, MQTT_FROM_SERVER, "00 01 02 80 83 87 8f 91 97 9e a1 a2"},
        {MQTT_UNSUBACK, MQTT_FROM_SERVER, "00 11 80 83 87 8f 91"},
        {MQTT_DISCONNECT, MQTT_FROM_CLIENT, "00 04 80 81 82 83 90 93 94 95 96 97 98 99"},
        {MQTT_DISCONNECT, MQTT_FROM_SERVER, "00 80 81 82 83 87 89 8b 8c 8d 8e 8f 90 93 94 95 96 97 98 99 9a 9b 9c 9d 9e 9f a0 a1 a2"},
        {MQTT_AUTH, MQTT_FROM_CLIENT, "18 19"},
        {MQTT_AUTH, MQTT_FROM_SERVER, "00 18"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool expected[256] = {false};
        uint8_t codes[64];
        size_t count = wire_bytes(codes, rows[i].codes);
        for (size_t k = 0; k < count; k++)
            expected[codes[k]] = true;
        for (unsigned code = 0; code < 256; code++)
            if (mqtt_reason_is_allowed(rows[i].type, rows[i].sender, code) != expected[code])
                fail_msg("%s from side %d: code 0x%02x, expected %d", mqtt_packet_name(rows[i].type), rows[i].sender, code, expected[code]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_property_in_each_packet),
        cmocka_unit_test(test_each_property_cut_short_at_each_byte),
        cmocka_unit_test(test_each_property_at_most_once_MQTT_3_1_4_1),
        cmocka_unit_test(test_values_out_of_range),
        cmocka_unit_test(test_values_read),
        cmocka_unit_test(test_encoding_writes_what_is_present),
        cmocka_unit_test(test_forwarding_a_publish_MQTT_3_3_2_4_and_15_to_20),
        cmocka_unit_test(test_names_of_the_tables),
        cmocka_unit_test(test_reason_codes_of_each_packet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
