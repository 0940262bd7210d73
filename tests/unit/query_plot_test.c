#include "sink/query/query_plot.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void expect_refused(const char *csv)
{
    struct query_plot plot = {0};
    struct errmsg msg = {""};
    size_t rows;
    if (query_plot_add(&plot, &rows, span_of_string(csv), &msg) != ERR_CORRUPT || msg.text[0] == 0)
        fail_msg("<%s> was not refused", csv);
    query_plot_deinit(&plot);
}

static char *draw(const struct query_plot *plot)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_int_equal(query_plot_draw(out, plot, 20, 3), ERR_OK);
    fclose(out);
    return text;
}

static void pages_become_one_picture_a_metric(void **state)
{
    (void)state;
    struct query_plot plot = {0};
    struct errmsg msg = {""};
    size_t rows;
    assert_int_equal(
        query_plot_add(&plot, &rows, span_of_string("time,time_ns,\"a,\"\"b\",speed\r\nx,1000000000,,1\r\nx,2000000000,4,\r\n"), &msg),
        ERR_OK);
    assert_int_equal(rows, 2);
    assert_int_equal(query_plot_add(&plot, &rows, span_of_string("time,time_ns,\"a,\"\"b\",speed\r\nx,3000000000,-2.5e3,1e-07\r\n"), &msg),
                     ERR_OK);
    assert_int_equal(rows, 1);
    assert_int_equal(plot.row_count, 3);
    assert_int_equal(plot.column_count, 2);
    assert_true(isnan(plot.cells[0]) && plot.cells[1] == 1);
    assert_true(plot.cells[2] == 4 && isnan(plot.cells[3]));
    assert_true(plot.cells[4] == -2500 && plot.cells[5] == 1e-07);
    char *text = draw(&plot);
    assert_true(strncmp(text, "a,\"b\n           4 ┤", strlen("a,\"b\n           4 ┤")) == 0);
    assert_non_null(strstr(text, "\n\nspeed\n           1 ┤"));
    free(text);
    query_plot_deinit(&plot);
}

static void an_answer_without_metrics_has_no_picture(void **state)
{
    (void)state;
    struct query_plot plot = {0};
    struct errmsg msg = {""};
    size_t rows;
    assert_int_equal(query_plot_add(&plot, &rows, span_of_string("time,time_ns\r\n"), &msg), ERR_OK);
    assert_int_equal(rows, 0);
    char *text = draw(&plot);
    assert_string_equal(text, "(no points)\n");
    free(text);
    query_plot_deinit(&plot);
}

static void other_texts_are_refused(void **state)
{
    (void)state;
    expect_refused("");
    expect_refused("time\r\n");
    expect_refused("time,value\r\n");
    expect_refused("time,time_ns,\"never closed\r\n");
    expect_refused("time,time_ns,a\r\nx,1\r\n");
    expect_refused("time,time_ns,a\r\nx,1,2,3\r\n");
    expect_refused("time,time_ns,a\r\nx,soon,2\r\n");
    expect_refused("time,time_ns,a\r\nx,,2\r\n");
    expect_refused("time,time_ns,a\r\nx,1,2 apples\r\n");
    expect_refused("time,time_ns,a\r\nx\r\n");
    expect_refused("time,time_ns,a\r\nx,2,1\r\nx,2,1\r\n");
    expect_refused("time,time_ns,a\r\nx,1,00000000000000000000000000000000000000000000000000000000000000000000000\r\n");
    struct query_plot plot = {0};
    struct errmsg msg = {""};
    size_t rows;
    assert_int_equal(query_plot_add(&plot, &rows, span_of_string("time,time_ns,a\r\n"), &msg), ERR_OK);
    assert_int_equal(query_plot_add(&plot, &rows, span_of_string("time,time_ns,a,b\r\n"), &msg), ERR_CORRUPT);
    assert_int_equal(query_plot_add(&plot, &rows, span_of("time,time_ns,a\r\n\0", 17), &msg), ERR_CORRUPT);
    query_plot_deinit(&plot);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_become_one_picture_a_metric),
        cmocka_unit_test(an_answer_without_metrics_has_no_picture),
        cmocka_unit_test(other_texts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
