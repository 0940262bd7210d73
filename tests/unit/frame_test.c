#include "broker/mqtt/frame.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/wire.h"

/* A frame of the bytes in `notation`, followed by `extra` zero bytes that are announced but need not be there. */
static void expect(const char *notation, size_t extra, uint32_t size_max, enum frame_result result, uint32_t header_size, uint32_t size,
                   unsigned reason)
{
    uint8_t bytes[64];
    size_t bytes_size = wire_bytes(bytes, notation);
    uint8_t *exact = calloc(1, bytes_size + extra + 1);
    memcpy(exact, bytes, bytes_size);
    exact = realloc(exact, bytes_size + extra ? bytes_size + extra : 1);
    struct frame frame;
    enum frame_result got = frame_parse(&frame, exact, bytes_size + extra, size_max);
    if (got != result || frame.header_size != header_size || frame.size != size || (got == FRAME_BAD && frame.bad.reason != reason))
        fail_msg("%s: result %d header %u size %u reason 0x%02x, expected %d %u %u 0x%02x", notation, got, frame.header_size, frame.size,
                 frame.bad.reason, result, header_size, size, reason);
    free(exact);
}

static void test_sizes_of_whole_packets(void **state)
{
    (void)state;
    expect("c000", 0, 100, FRAME_OK, 2, 2, 0);
    expect("307f", 127, 1000, FRAME_OK, 2, 129, 0);
    expect("308001", 128, 1000, FRAME_OK, 3, 131, 0);
    expect("30ff7f", 16383, 100000, FRAME_OK, 3, 16386, 0);
    expect("30808001", 16384, 100000, FRAME_OK, 4, 16388, 0);
    expect("30ffff7f", 0, FRAME_SIZE_MAX, FRAME_MORE, 4, 2097155, 0);
    expect("3080808001", 0, FRAME_SIZE_MAX, FRAME_MORE, 5, 2097157, 0);
    expect("30ffffff7f", 0, FRAME_SIZE_MAX, FRAME_MORE, 5, FRAME_SIZE_MAX, 0);
}

static void test_incomplete_headers_and_bodies(void **state)
{
    (void)state;
    expect("", 0, 100, FRAME_MORE, 0, 0, 0);
    expect("30", 0, 100, FRAME_MORE, 0, 0, 0);
    expect("3080", 0, 100, FRAME_MORE, 0, 0, 0);
    expect("30808080", 0, 100, FRAME_MORE, 0, 0, 0);
    expect("3003", 2, 100, FRAME_MORE, 2, 5, 0);
    expect("3003", 3, 100, FRAME_OK, 2, 5, 0);
    expect("3003", 9, 100, FRAME_OK, 2, 5, 0);
}

static void test_remaining_length_in_its_shortest_form_MQTT_1_5_5_1(void **state)
{
    (void)state;
    expect("308000", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("30818000", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("3080808000", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("30ff8000", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("3080808080", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("30ffffffff", 0, 100, FRAME_BAD, 0, 0, 0x81);
}

static void test_packet_too_large_counts_the_header_MQTT_3_2_2_15(void **state)
{
    (void)state;
    expect("3003", 3, 5, FRAME_OK, 2, 5, 0);
    expect("3003", 3, 4, FRAME_BAD, 2, 5, 0x95);
    expect("3003", 0, 4, FRAME_BAD, 2, 5, 0x95); /* judged before the body is there */
    expect("30ffffff7f", 0, FRAME_SIZE_MAX - 1, FRAME_BAD, 5, FRAME_SIZE_MAX, 0x95);
}

static void test_packet_type_0_is_reserved(void **state)
{
    (void)state;
    expect("0000", 0, 100, FRAME_BAD, 0, 0, 0x81);
    expect("0f", 0, 100, FRAME_BAD, 0, 0, 0x81);
}

static void test_variable_byte_integers_there_and_back(void **state)
{
    (void)state;
    static const uint32_t values[] = {0, 1, 127, 128, 16383, 16384, 2097151, 2097152, MQTT_VARINT_MAX};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        uint8_t bytes[MQTT_VARINT_SIZE_MAX];
        size_t size = mqtt_varint_put(bytes, values[i]);
        assert_int_equal(size, mqtt_varint_size(values[i]));
        uint32_t back = 0;
        assert_int_equal(mqtt_varint_get(&back, bytes, bytes + size), size);
        assert_int_equal(back, values[i]);
        assert_int_equal(mqtt_varint_get(&back, bytes, bytes + size - 1), 0);
    }
    uint32_t value;
    static const uint8_t not_minimal[] = {0x81, 0x00};
    assert_int_equal(mqtt_varint_get(&value, not_minimal, not_minimal + 2), 0);
    static const uint8_t too_long[] = {0x80, 0x80, 0x80, 0x80, 0x01};
    assert_int_equal(mqtt_varint_get(&value, too_long, too_long + 5), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_of_whole_packets),
        cmocka_unit_test(test_incomplete_headers_and_bodies),
        cmocka_unit_test(test_remaining_length_in_its_shortest_form_MQTT_1_5_5_1),
        cmocka_unit_test(test_packet_too_large_counts_the_header_MQTT_3_2_2_15),
        cmocka_unit_test(test_packet_type_0_is_reserved),
        cmocka_unit_test(test_variable_byte_integers_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
