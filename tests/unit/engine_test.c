/* Merged rows to text: formats, limits, doubles that read back the same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "sink/query/engine.h"
#include "sink/store/head.h"
#include "tests/lib/check_random.h"

struct fixture {
    struct head *head;
    struct head_cursor cursor;
    struct query_columns columns;
    struct buf out;
    struct query_result result;
};

static void add(struct fixture *f, int64_t time_ns, const char *metric, double value)
{
    const struct head_metric point = {span_of_string(metric), value};
    CHECK(head_add_row(f->head, span_of_string("d"), time_ns, &point, 1, 0) == ERR_OK);
}

static void begin(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->head = head_new(1 << 24, 1);
    buf_init(&f->out, 1 << 20);
}

static void end(struct fixture *f)
{
    head_free(f->head);
    query_columns_deinit(&f->columns);
    buf_deinit(&f->out);
}

static const char *run(struct fixture *f, enum query_format format, size_t limit)
{
    const struct query query = {.device = span_of_string("d"), .row_limit = limit, .format = format};
    const struct query_meta meta = {.watermark_ns = 1000000000};
    struct merge_source *source = &f->cursor.source;
    head_cursor_init(&f->cursor, head_find(f->head, span_of_string("d")), INT64_MIN, INT64_MAX, 1);
    buf_clear(&f->out);
    CHECK(query_run(&f->out, &f->result, &query, &f->columns, &meta, &source, 1, NULL, NULL) == ERR_OK);
    return buf_string(&f->out);
}

static void test_formats(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f);
    add(&f, 1000000000, "b", 0.1);
    add(&f, 1000000000, "a\"x", -3);
    add(&f, 2500000000, "b", NAN);
    add(&f, 3000000000, "other", 1);
    assert_int_equal(query_columns_add(&f.columns, span_of_string("b")), ERR_OK);
    assert_int_equal(query_columns_add(&f.columns, span_of_string("a\"x")), ERR_OK);
    assert_int_equal(query_columns_add(&f.columns, span_of_string("b")), ERR_OK);
    assert_string_equal(run(&f, QUERY_CSV, 10), "time,time_ns,b,\"a\"\"x\"\r\n"
                                                "1970-01-01T00:00:01Z,1000000000,0.1,-3\r\n"
                                                "1970-01-01T00:00:02.500Z,2500000000,NaN,\r\n");
    assert_string_equal(
        run(&f, QUERY_JSON, 10),
        "{\"device\":\"d\",\"watermark\":\"1970-01-01T00:00:01Z\",\"watermark_ns\":1000000000,\"columns\":[\"b\",\"a\\\"x\"],\"rows\":[\n"
        "{\"time\":\"1970-01-01T00:00:01Z\",\"time_ns\":1000000000,\"values\":{\"b\":0.1,\"a\\\"x\":-3}},\n"
        "{\"time\":\"1970-01-01T00:00:02.500Z\",\"time_ns\":2500000000,\"values\":{\"b\":null}}],"
        "\"row_count\":2,\"point_count\":3,\"truncated\":false,\"corrupt_chunks\":0}\n");
    assert_string_equal(run(&f, QUERY_TABLE, 1), "time                                       b           a\"x\n"
                                                 "1970-01-01T00:00:01Z                     0.1            -3\n"
                                                 "1 row\ncut here: ask on from 1970-01-01T00:00:02.500Z\n");
    query_columns_sort(&f.columns);
    assert_true(strncmp(run(&f, QUERY_CSV, 10), "time,time_ns,\"a\"\"x\",b\r\n", 22) == 0);
    end(&f);
}

/* However small the buffer, the answer is whole rows and says where it was cut. */
static void test_a_full_buffer_cuts_between_rows(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f);
    for (int i = 0; i < 500; i++)
        add(&f, i, "v", i);
    assert_int_equal(query_columns_add(&f.columns, span_of_string("v")), ERR_OK);
    for (size_t size = 2048; size < 20000; size += 501) {
        buf_deinit(&f.out);
        buf_init(&f.out, size);
        const char *text = run(&f, QUERY_JSON, 1000);
        assert_true(f.result.is_truncated);
        assert_int_equal(f.result.next_ns, f.result.row_count);
        assert_int_equal(f.result.point_count, f.result.row_count);
        assert_true(text[f.out.size - 2] == '}');
        size_t rows = 0;
        for (const char *at = text; (at = strstr(at, "\"values\"")) != NULL; at++)
            rows++;
        assert_int_equal(rows, f.result.row_count);
    }
    end(&f);
}

static void test_doubles_read_back(void **state)
{
    struct check_random random;
    struct buf out;
    (void)state;
    buf_init(&out, 100);
    check_random_init(&random, check_random_seed(1));
    for (int i = 0; i < 100000; i++) {
        uint64_t bits = check_random_next(&random);
        double value, back;
        if (i % 2)
            value = (double)check_random_between(&random, -1000000, 1000000) / 1000;
        else
            memcpy(&value, &bits, sizeof value);
        if (isnan(value) || isinf(value))
            continue;
        buf_clear(&out);
        query_put_double(&out, value, true);
        back = strtod(buf_string(&out), NULL);
        assert_memory_equal(&back, &value, sizeof value);
    }
    buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_formats), cmocka_unit_test(test_a_full_buffer_cuts_between_rows),
                                       cmocka_unit_test(test_doubles_read_back)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
