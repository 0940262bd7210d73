/* Columns and their codecs: what goes in comes out, bit by bit, for every kind of value, and stays inside the bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sink/codec/bitstream.h"
#include "sink/codec/column.h"
#include "sink/codec/decimal.h"
#include "sink/codec/dictionary.h"
#include "sink/codec/gorilla.h"
#include "sink/codec/range_coder.h"
#include "sink/codec/timestamps.h"
#include "tests/lib/check_random.h"

static double values[COLUMN_ROWS_MAX], decoded[COLUMN_ROWS_MAX];
static uint64_t present[COLUMN_ROWS_MAX / 64], present_out[COLUMN_ROWS_MAX / 64];
static uint8_t bytes[64 + COLUMN_ROWS_MAX * 9 + 64];
static struct column_scratch *scratch;

static double from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static const uint64_t specials[] = {
    0x0000000000000000, 0x8000000000000000,                                                                                 /* zeros */
    0x7ff0000000000000, 0xfff0000000000000,                                                                                 /* infinities */
    0x7ff8000000000000, 0xfff8000000000000, 0x7ff8000000000001, 0x7ff0000000000001, 0xffffffffffffffff, 0x7ff4dead0000beef, /* NaNs */
    0x0000000000000001, 0x8000000000000001, 0x000fffffffffffff, 0x0010000000000000, /* subnormals and the least normal */
    0x7fefffffffffffff, 0xffefffffffffffff, 0x3ff0000000000000, 0x4340000000000000, 0x4340000000000001, 0x433fffffffffffff, /* 2^53 */
};
#define SPECIAL_COUNT (sizeof specials / sizeof *specials)

/* Encode, decode, compare; returns the size. */
static size_t round_trip(const uint64_t *present_in, size_t row_count, enum column_effort effort)
{
    memset(bytes, 0xa5, sizeof bytes);
    size_t size = column_encode(scratch, bytes, values, present_in, row_count, effort);
    assert_true(size >= 1);
    assert_true(size <= column_size_max(row_count));
    assert_int_equal(bytes[column_size_max(row_count)], 0xa5);
    assert_int_equal(column_decode(scratch, decoded, present_out, row_count, span_of(bytes, size)), ERR_OK);
    for (size_t i = 0; i < row_count; i++) {
        bool has = !present_in || (present_in[i / 64] >> (i % 64) & 1);
        if (has != (present_out[i / 64] >> (i % 64) & 1))
            fail_msg("presence of row %zu of %zu differs", i, row_count);
        if (has && memcmp(&decoded[i], &values[i], sizeof(double)) != 0)
            fail_msg("%s, row %zu of %zu: %a came back as %a", column_codec_name(span_of(bytes, size)), i, row_count, values[i],
                     decoded[i]);
    }
    return size;
}

static void round_trip_all(const uint64_t *present_in, size_t row_count)
{
    round_trip(present_in, row_count, COLUMN_GORILLA);
    round_trip(present_in, row_count, COLUMN_FAST);
    round_trip(present_in, row_count, COLUMN_DENSE);
}

static void test_every_special_double_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPECIAL_COUNT; i++) {
        values[0] = from_bits(specials[i]);
        round_trip_all(NULL, 1);
        for (size_t k = 0; k < SPECIAL_COUNT; k++) {
            values[0] = from_bits(specials[i]);
            values[1] = from_bits(specials[k]);
            round_trip_all(NULL, 2);
            for (size_t n = 2; n < 100; n++)
                values[n] = (double)n / 10;
            round_trip_all(NULL, 100);
        }
    }
}

/* One column of some kind of telemetry. */
static void fill(struct check_random *random, unsigned kind, size_t row_count)
{
    static const double powers[] = {1, 10, 100, 1000, 1e6, 1e9, 1e12};
    double power = powers[check_random_below(random, 7)], walk = (double)check_random_between(random, -100000, 100000);
    uint64_t pool[8];
    for (size_t i = 0; i < 8; i++)
        pool[i] = check_random_next(random);
    for (size_t i = 0; i < row_count; i++) {
        walk += (double)check_random_between(random, -20, 20);
        switch (kind) {
        case 0:
            values[i] = walk / power;
            break;
        case 1:
            values[i] = (double)(float)(walk / 1000);
            break;
        case 2:
            values[i] = from_bits(check_random_next(random));
            break;
        case 3:
            values[i] = from_bits(pool[check_random_below(random, 8)]);
            break;
        case 4:
            values[i] = (double)i * 0.1; /* decimals off by a unit in the last place */
            break;
        case 5:
            values[i] = check_random_chance(random, 1, 20) ? from_bits(specials[check_random_below(random, SPECIAL_COUNT)]) : walk / power;
            break;
        case 6:
            values[i] = check_random_chance(random, 1, 50) ? walk : 0;
            break;
        case 7:
            values[i] = (double)check_random_next(random);
            break;
        case 8:
            values[i] = check_random_unit(random);
            break;
        default:
            values[i] = 42;
            break;
        }
    }
}

static void test_random_columns_come_back(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(7));
    for (int step = 0; step < 600; step++) {
        size_t row_count = check_random_size(&random, COLUMN_ROWS_MAX - 1) + 1;
        fill(&random, (unsigned)check_random_below(&random, 10), row_count);
        round_trip_all(NULL, row_count);
        memset(present, 0, sizeof present);
        uint64_t density = check_random_below(&random, 5);
        bool has = false;
        for (size_t i = 0; i < row_count; i++) {
            if (density == 0 || check_random_below(&random, 1 + density * density * 10) == 0)
                has = check_random_chance(&random, 1, 2);
            if (has)
                present[i / 64] |= (uint64_t)1 << (i % 64);
        }
        round_trip_all(present, row_count);
    }
}

static void test_sizes_are_what_the_codecs_promise(void **state)
{
    (void)state;
    for (size_t i = 0; i < 1024; i++)
        values[i] = 21.5;
    assert_true(round_trip(NULL, 1024, COLUMN_FAST) <= 10); /* constant */
    for (size_t i = 0; i < 1024; i++)
        values[i] = 1000 + (double)i * 2.5;
    assert_true(round_trip(NULL, 1024, COLUMN_FAST) <= 20); /* a line */
    for (size_t i = 0; i < 1024; i++)
        values[i] = (double)((i * 7919) % 16) / 100;
    assert_true(round_trip(NULL, 1024, COLUMN_FAST) <= 1024 / 2 + 40); /* 4 bits each */
    for (size_t i = 0; i < 1024; i++)
        values[i] = (double)(float)((double)((i * 7919) % 16) / 100 + 0.013);
    assert_true(round_trip(NULL, 1024, COLUMN_FAST) <= 1024 / 2 + 60); /* float noise costs nothing */
    for (size_t i = 0; i < 1024; i++)
        values[i] = i % 100 == 99 ? 1 : 0;
    assert_true(round_trip(NULL, 1024, COLUMN_FAST) <= 50);
}

static void test_unknown_codec_is_a_version(void **state)
{
    (void)state;
    values[0] = 1.5;
    values[1] = 2.5;
    size_t size = round_trip(NULL, 2, COLUMN_FAST);
    bytes[0] = 0x1e;
    assert_int_equal(column_decode(scratch, decoded, present_out, 2, span_of(bytes, size)), ERR_VERSION);
    assert_string_equal(column_codec_name(span_of(bytes, size)), "unknown");
    assert_int_equal(column_decode(scratch, decoded, present_out, 2, span_of(bytes, 0)), ERR_CORRUPT);
}

static void test_damaged_columns_do_no_harm(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(8));
    for (int step = 0; step < 3000; step++) {
        size_t row_count = check_random_size(&random, 500) + 1;
        fill(&random, (unsigned)check_random_below(&random, 10), row_count);
        size_t size = column_encode(scratch, bytes, values, NULL, row_count, step % 2 ? COLUMN_FAST : COLUMN_DENSE);
        for (int flips = 0; flips < 3; flips++)
            bytes[check_random_below(&random, size)] ^= (uint8_t)(1u << check_random_below(&random, 8));
        size_t cut = check_random_chance(&random, 1, 3) ? check_random_below(&random, size + 1) : size;
        uint8_t *exact = malloc(cut ? cut : 1);
        memcpy(exact, bytes, cut);
        (void)!column_decode(scratch, decoded, present_out, row_count, span_of(exact, cut));
        free(exact);
    }
}

static void test_gorilla_alone(void **state)
{
    (void)state;
    /* 12.0, 12.0, 24.0: 64 bits, one bit, then 13 bits and one meaningful bit (0x4028... ^ 0x4038... = 1 << 52). */
    static const double three[] = {12.0, 12.0, 24.0};
    assert_int_equal(gorilla_cost_bits(three, 3), 64 + 1 + 13 + 1);
    assert_int_equal(gorilla_encode(bytes, sizeof bytes, three, 3), (64 + 1 + 13 + 1 + 7) / 8);
    assert_int_equal(gorilla_decode(decoded, 3, span_of(bytes, 10)), ERR_OK);
    assert_memory_equal(decoded, three, sizeof three);
    assert_int_equal(gorilla_decode(decoded, 3, span_of(bytes, 9)), ERR_CORRUPT);
    assert_int_equal(gorilla_decode(decoded, 2, span_of(bytes, 10)), ERR_CORRUPT);
    assert_int_equal(gorilla_encode(bytes, 8, three, 3), 0);
}

static void test_bits_come_back_and_the_end_holds(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(9));
    static uint64_t written[4096];
    static unsigned widths[4096];
    for (int step = 0; step < 200; step++) {
        struct bit_writer w;
        size_t count = check_random_below(&random, 300) + 1;
        bit_writer_init(&w, bytes, sizeof bytes);
        for (size_t i = 0; i < count; i++) {
            widths[i] = (unsigned)check_random_below(&random, 66); /* 65: unary */
            written[i] = widths[i] == 65   ? check_random_below(&random, 200)
                         : widths[i] == 64 ? check_random_next(&random)
                                           : check_random_next(&random) & (((uint64_t)1 << widths[i]) - 1);
            if (widths[i] == 65)
                bit_writer_put_unary(&w, (unsigned)written[i]);
            else
                bit_writer_put(&w, written[i], widths[i]);
        }
        size_t size = bit_writer_finish(&w);
        uint8_t *exact = malloc(size ? size : 1);
        memcpy(exact, bytes, size);
        struct bit_reader r;
        bit_reader_init(&r, span_of(exact, size));
        for (size_t i = 0; i < count; i++)
            assert_true((widths[i] == 65 ? bit_reader_get_unary(&r, 200) : bit_reader_get_wide(&r, widths[i])) == written[i]);
        assert_false(r.overrun);
        assert_true(bit_reader_is_done(&r));
        (void)bit_reader_get(&r, 8);
        assert_true(r.overrun);
        free(exact);
    }
}

static void test_times(void **state)
{
    (void)state;
    static struct timestamps_scratch times_scratch;
    static int64_t times[INTEGERS_COUNT_MAX], again[INTEGERS_COUNT_MAX];
    struct check_random random;
    check_random_init(&random, check_random_seed(10));
    for (size_t i = 0; i < 4096; i++)
        times[i] = 1700000000000000000 + (int64_t)i * 10000000000;
    assert_true(timestamps_encode(&times_scratch, bytes, times, 4096, false) <= 20);
    for (int step = 0; step < 500; step++) {
        size_t count = check_random_size(&random, INTEGERS_COUNT_MAX - 1) + 1;
        unsigned kind = (unsigned)check_random_below(&random, 4);
        int64_t t = check_random_between(&random, INT64_MIN, INT64_MAX), unit = kind == 1 ? 1000000 : 1;
        for (size_t i = 0; i < count; i++) {
            if (kind == 0)
                times[i] = (int64_t)check_random_next(&random);
            else
                times[i] = t = (int64_t)((uint64_t)t + (uint64_t)(check_random_between(&random, -50, 1000) * unit));
        }
        size_t size = timestamps_encode(&times_scratch, bytes, times, count, step % 2);
        assert_true(size <= timestamps_size_max(count));
        assert_int_equal(timestamps_decode(again, count, span_of(bytes, size)), ERR_OK);
        assert_memory_equal(times, again, count * sizeof *times);
    }
}

static void test_range_coder_follows_skewed_bits(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(11));
    static uint8_t bits[100000];
    for (int step = 0; step < 40; step++) {
        uint32_t odds = (uint32_t)check_random_below(&random, 1000);
        size_t count = check_random_size(&random, 20000) + 1;
        struct range_bit model;
        struct range_encoder enc;
        range_bit_init(&model);
        range_encoder_init(&enc, bytes, sizeof bytes);
        for (size_t i = 0; i < count; i++) {
            bits[i] = check_random_chance(&random, odds, 1000);
            range_encode_bit(&enc, &model, bits[i]);
            if (i % 16 == 0)
                range_encode_direct(&enc, i & 0xfff, 12);
        }
        size_t size = range_encoder_finish(&enc);
        assert_true(size > 0);
        struct range_decoder dec;
        range_bit_init(&model);
        range_decoder_init(&dec, span_of(bytes, size));
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(range_decode_bit(&dec, &model), bits[i]);
            if (i % 16 == 0)
                assert_int_equal(range_decode_direct(&dec, 12), i & 0xfff);
        }
        assert_true(range_decoder_is_done(&dec));
    }
}

static void test_dictionary_tells_values_by_their_bits(void **state)
{
    (void)state;
    static struct dictionary dict;
    static struct decimal_scratch work;
    static int64_t integers[COLUMN_ROWS_MAX];
    for (size_t i = 0; i < 1000; i++)
        values[i] = from_bits(specials[(i * i) % SPECIAL_COUNT]);
    assert_true(dictionary_build(&dict, DICTIONARY_VALUES_MAX, values, 1000));
    size_t size = dictionary_encode(&dict, &work, bytes, sizeof bytes, 1000, false);
    assert_true(size > 0);
    assert_int_equal(dictionary_decode(decoded, integers, 1000, span_of(bytes, size)), ERR_OK);
    assert_memory_equal(decoded, values, 1000 * sizeof(double));
    for (size_t i = 0; i < 300; i++)
        values[i] = (double)i;
    assert_false(dictionary_build(&dict, DICTIONARY_VALUES_MAX, values, 300));
}

static int setup(void **state)
{
    (void)state;
    scratch = column_scratch_new();
    return scratch ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    column_scratch_free(scratch);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_come_back_and_the_end_holds),
        cmocka_unit_test(test_gorilla_alone),
        cmocka_unit_test(test_range_coder_follows_skewed_bits),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_dictionary_tells_values_by_their_bits),
        cmocka_unit_test(test_every_special_double_comes_back),
        cmocka_unit_test(test_random_columns_come_back),
        cmocka_unit_test(test_sizes_are_what_the_codecs_promise),
        cmocka_unit_test(test_unknown_codec_is_a_version),
        cmocka_unit_test(test_damaged_columns_do_no_harm),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
