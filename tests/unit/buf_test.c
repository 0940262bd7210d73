#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/buf.h"
#include "tests/lib/check_random.h"

static void a_buffer_behaves_like_a_large_array(void **state)
{
    (void)state;
    struct check_random random;
    struct buf buf;
    uint8_t model[5000];
    uint8_t bytes[600];
    size_t size = 0;
    check_random_init(&random, check_random_seed(6));
    buf_init(&buf, sizeof model);
    for (int step = 0; step < 5000; step++) {
        size_t part = check_random_size(&random, sizeof bytes);
        check_random_fill(&random, bytes, part);
        switch (check_random_below(&random, 5)) {
        case 0:
        case 1:
            buf_put(&buf, bytes, part);
            if (size + part > sizeof model) {
                assert_int_equal(buf.err, ERR_TOOLARGE);
                buf_clear(&buf);
                size = 0;
            } else {
                memcpy(model + size, bytes, part);
                size += part;
            }
            break;
        case 2: {
            uint8_t *at = buf_reserve(&buf, part);
            if (!at) {
                assert_true(size + part > sizeof model);
                buf_clear(&buf);
                size = 0;
                break;
            }
            memcpy(at, bytes, part);
            buf_commit(&buf, part);
            memcpy(model + size, bytes, part);
            size += part;
            break;
        }
        default: {
            size_t front = check_random_below(&random, size + 1);
            buf_consume(&buf, front);
            memmove(model, model + front, size - front);
            size -= front;
        }
        }
        assert_int_equal(buf.err, ERR_OK);
        assert_true(span_equal(buf_span(&buf), span_of(model, size)));
    }
    buf_deinit(&buf);
}

static void a_put_past_the_bound_fails_whole_and_for_good(void **state)
{
    (void)state;
    struct buf buf;
    buf_init(&buf, 10);
    buf_put_string(&buf, "12345678");
    buf_put_string(&buf, "abc");
    assert_int_equal(buf.err, ERR_TOOLARGE);
    buf_put_string(&buf, "9");
    buf_printf(&buf, "%d", 1);
    assert_string_equal(buf_string(&buf), "12345678");
    buf_clear(&buf);
    buf_printf(&buf, "%s", "1234567890");
    assert_int_equal(buf.err, ERR_OK);
    assert_string_equal(buf_string(&buf), "1234567890");
    buf_printf(&buf, "%s", "");
    assert_int_equal(buf.err, ERR_OK);
    buf_deinit(&buf);
    assert_string_equal(buf_string(&buf), "");
    buf_deinit(&buf);
}

static void printf_grows_for_long_texts(void **state)
{
    (void)state;
    struct buf buf;
    char text[3001];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    buf_init(&buf, 1 << 20);
    for (int i = 0; i < 10; i++)
        buf_printf(&buf, "%d%s", i, text);
    assert_int_equal(buf.size, 30010);
    assert_int_equal(buf.data[9 * 3001], '9');
    buf_deinit(&buf);
}

static void assert_json(const char *text, size_t size, const char *expected)
{
    struct buf buf;
    buf_init(&buf, 1000);
    buf_put_json_string(&buf, span_of(text, size));
    assert_string_equal(buf_string(&buf), expected);
    buf_deinit(&buf);
}

static void json_strings_are_valid_whatever_comes(void **state)
{
    (void)state;
    assert_json("plain", 5, "\"plain\"");
    assert_json("", 0, "\"\"");
    assert_json("a\"b\\c\n\t\r", 8, "\"a\\\"b\\\\c\\n\\t\\r\"");
    assert_json("\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\\u007f\"");
    assert_json("\xc3\xa4", 2, "\"\xc3\xa4\"");
    assert_json("\xff"
                "a\xc3",
                3,
                "\"\xef\xbf\xbd"
                "a\xef\xbf\xbd\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_buffer_behaves_like_a_large_array),
        cmocka_unit_test(a_put_past_the_bound_fails_whole_and_for_good),
        cmocka_unit_test(printf_grows_for_long_texts),
        cmocka_unit_test(json_strings_are_valid_whatever_comes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
