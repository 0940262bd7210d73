/* The pieces of the query command line that need no server. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "sink/query/query_client.h"

static void url(const char *text, const char *host_wanted, const char *port_wanted)
{
    char host[256], port[16];
    enum err err = query_client_split_url(host, port, text);
    assert_int_equal(err, host_wanted ? ERR_OK : ERR_INVALID);
    if (host_wanted) {
        assert_string_equal(host, host_wanted);
        assert_string_equal(port, port_wanted);
    }
}

static void test_urls(void **state)
{
    (void)state;
    url("http://127.0.0.1:9801", "127.0.0.1", "9801");
    url("http://127.0.0.1:9801/", "127.0.0.1", "9801");
    url("sink.example:1", "sink.example", "1");
    url("http://sink", "sink", "80");
    url("http://[::1]:9801", "::1", "9801");
    url("http://[::1]", "::1", "80");
    url("http://", NULL, NULL);
    url("http://:9801", NULL, NULL);
    url("http://a:", NULL, NULL);
    url("http://a:x", NULL, NULL);
    url("http://a:123456", NULL, NULL);
    url("http://a:1/path", NULL, NULL);
    url("http://[::1", NULL, NULL);
    url("http://[::1]9", NULL, NULL);
}

static void test_escaping(void **state)
{
    struct buf out;
    (void)state;
    buf_init(&out, 1000);
    query_client_put_escaped(&out, "a-Z.0_~ +&=/%\xc3\xa9");
    assert_string_equal(buf_string(&out), "a-Z.0_~%20%2B%26%3D%2F%25%C3%A9");
    buf_deinit(&out);
}

static void test_nobody_listens(void **state)
{
    struct buf body;
    struct errmsg msg;
    struct query_answer answer;
    (void)state;
    buf_init(&body, 1000);
    assert_int_equal(query_client_get("127.0.0.1", "1", "/", &answer, &body, &msg), ERR_NOTFOUND);
    buf_deinit(&body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_urls), cmocka_unit_test(test_escaping), cmocka_unit_test(test_nobody_listens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
