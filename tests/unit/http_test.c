#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/http.h"
#include "common/logger.h"

static struct http_server *server;

static void on_echo(void *arg, const struct http_request *request, struct http_response *response)
{
    const char *name = http_request_query(request, "name");
    const char *second = http_request_query_at(request, "name", 1);
    const char *header = http_request_header(request, "X-Test");
    http_response_type(response, "text/plain");
    http_response_header(response, "X-Answer", "42");
    buf_printf(http_response_body(response), "%s %s rest=%s arg=%s name=%s second=%s header=%s body=%.*s", request->method, request->path,
               request->rest, (const char *)arg, name ? name : "-", second ? second : "-", header ? header : "-", (int)request->body.size,
               (const char *)request->body.data);
}

static void on_large(void *arg, const struct http_request *request, struct http_response *response)
{
    (void)arg;
    long size = strtol(http_request_query(request, "size"), NULL, 10);
    uint8_t *at = buf_reserve(http_response_body(response), (size_t)size);
    if (!at)
        return;
    memset(at, 'z', (size_t)size);
    buf_commit(http_response_body(response), (size_t)size);
}

static void on_refuse(void *arg, const struct http_request *request, struct http_response *response)
{
    (void)arg;
    (void)request;
    buf_put_string(http_response_body(response), "half of an answer");
    http_response_error(response, 409, "no \"%s\"", "thing");
}

static const struct http_route routes[] = {
    {"GET", "/echo", false, on_echo, NULL},
    {"POST", "/echo", false, on_echo, NULL},
    {"GET", "/device", true, on_echo, (void *)(uintptr_t) "prefix"},
    {"GET", "/device/special", false, on_echo, (void *)(uintptr_t) "exact"},
    {"GET", "/large", false, on_large, NULL},
    {"*", "/refuse", false, on_refuse, NULL},
};

/* One connection, one request, the whole answer as a string (freed by the caller). */
static char *exchange(const char *request, size_t request_size)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(http_server_port(server)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    for (size_t sent = 0; sent < request_size;) {
        ssize_t part = send(fd, request + sent, request_size - sent, MSG_NOSIGNAL);
        if (part <= 0)
            break; /* the server may answer and close before it has all */
        sent += (size_t)part;
    }
    struct buf answer;
    buf_init(&answer, 100 << 20);
    uint8_t *at;
    ssize_t got = 0;
    while ((at = buf_reserve(&answer, 65536)) && (got = recv(fd, at, 65536, 0)) > 0)
        buf_commit(&answer, (size_t)got);
    close(fd);
    char *text = strdup(buf_string(&answer));
    buf_deinit(&answer);
    return text;
}

static void assert_answer(const char *request, const char *status, const char *body)
{
    char full[4096];
    snprintf(full, sizeof full, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Test: yes\r\n\r\n", request);
    char *answer = exchange(full, strlen(full));
    const char *split = strstr(answer, "\r\n\r\n");
    if (strncmp(answer, status, strlen(status)) != 0 || !split || strcmp(split + 4, body) != 0)
        fail_msg("%s\ngives\n%s\nexpected %s and\n%s", request, answer, status, body);
    free(answer);
}

static void requests_reach_their_handlers(void **state)
{
    (void)state;
    assert_answer("GET /echo", "HTTP/1.1 200 OK", "GET /echo rest= arg=server name=- second=- header=yes body=");
    assert_answer("GET /echo?name=a%20b+c%26&x=1&name=second", "HTTP/1.1 200 OK",
                  "GET /echo rest= arg=server name=a b c& second=second header=yes body=");
    assert_answer("GET /echo?name", "HTTP/1.1 200 OK", "GET /echo rest= arg=server name= second=- header=yes body=");
    assert_answer("GET /device/car%2042/x", "HTTP/1.1 200 OK",
                  "GET /device/car 42/x rest=/car 42/x arg=prefix name=- second=- header=yes body=");
    assert_answer("GET /device", "HTTP/1.1 200 OK", "GET /device rest= arg=prefix name=- second=- header=yes body=");
    assert_answer("GET /device/special", "HTTP/1.1 200 OK", "GET /device/special rest= arg=exact name=- second=- header=yes body=");
    assert_answer("HEAD /echo", "HTTP/1.1 200 OK", "");
}

static void what_is_not_there_is_said_in_json(void **state)
{
    (void)state;
    assert_answer("GET /", "HTTP/1.1 404 ", "{\"error\": \"/: there is nothing here\"}\n");
    assert_answer("GET /devices", "HTTP/1.1 404 ", "{\"error\": \"/devices: there is nothing here\"}\n");
    assert_answer("GET /x%22%0a", "HTTP/1.1 404 ", "{\"error\": \"/x\\\"\\n: there is nothing here\"}\n");
    assert_answer("DELETE /echo", "HTTP/1.1 405 ", "{\"error\": \"/echo does not take DELETE (allowed: GET, POST)\"}\n");
    assert_answer("PUT /refuse", "HTTP/1.1 409 ", "{\"error\": \"no \\\"thing\\\"\"}\n");
}

static void headers_are_set(void **state)
{
    (void)state;
    static const char echo[] = "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    static const char wrong[] = "PATCH /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char *answer = exchange(echo, sizeof echo - 1);
    assert_non_null(strstr(answer, "Content-Type: text/plain\r\n"));
    assert_non_null(strstr(answer, "X-Answer: 42\r\n"));
    free(answer);
    answer = exchange(wrong, sizeof wrong - 1);
    assert_non_null(strstr(answer, "Allow: GET, POST\r\n"));
    assert_non_null(strstr(answer, "Content-Type: application/json\r\n"));
    free(answer);
}

static char *post(size_t body_size, const char *body, const char *type)
{
    struct buf request;
    buf_init(&request, 10 << 20);
    buf_printf(&request, "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", type,
               body_size);
    buf_put(&request, body, body_size);
    char *answer = exchange(buf_string(&request), request.size);
    buf_deinit(&request);
    return answer;
}

static void bodies_are_collected_and_bounded(void **state)
{
    (void)state;
    char *body = malloc(20001);
    memset(body, 'q', 20000);
    body[20000] = '\0';
    char *answer = post(20000, body, "application/json");
    assert_non_null(strstr(answer, body));
    free(answer);
    answer = post(20001, body, "application/json"); /* the configured bound is 20000 */
    assert_int_equal(strncmp(answer, "HTTP/1.1 413 ", 13), 0);
    assert_non_null(strstr(answer, "{\"error\": \"the body is larger than the limit of 20000 bytes\"}"));
    free(answer);
    free(body);
    answer = post(25, "name=a+b%21&&x&name=%zz&=5", "application/x-www-form-urlencoded");
    assert_non_null(strstr(answer, "name=a b! second=%zz "));
    free(answer);
}

static void a_chunked_body_past_the_limit_is_refused(void **state)
{
    (void)state;
    struct buf request;
    buf_init(&request, 1 << 20);
    buf_put_string(&request, "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 30; i++) {
        buf_put_string(&request, "3e8\r\n");
        for (int k = 0; k < 1000; k++)
            buf_put_byte(&request, 'c');
        buf_put_string(&request, "\r\n");
    }
    buf_put_string(&request, "0\r\n\r\n");
    char *answer = exchange(buf_string(&request), request.size);
    assert_int_equal(strncmp(answer, "HTTP/1.1 413 ", 13), 0);
    free(answer);
    buf_deinit(&request);
}

static void large_answers_pass_and_too_large_ones_are_said(void **state)
{
    (void)state;
    static const char large[] = "GET /large?size=30000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char *answer = exchange(large, sizeof large - 1);
    const char *split = strstr(answer, "\r\n\r\n");
    assert_non_null(split);
    assert_int_equal(strspn(split + 4, "z"), 30000000);
    free(answer);
    assert_answer("GET /large?size=40000001", "HTTP/1.1 500 ", "{\"error\": \"the response is larger than the limit; ask for less\"}\n");
}

static int ask_and_not_read(void)
{
    static const char request[] = "GET /large?size=30000000 HTTP/1.1\r\nHost: x\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(http_server_port(server)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char first;
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(send(fd, request, sizeof request - 1, MSG_NOSIGNAL), sizeof request - 1);
    assert_int_equal(recv(fd, &first, 1, 0), 1); /* the answer is made */
    return fd;
}

static void answers_for_slow_readers_are_bounded_together(void **state)
{
    (void)state;
    int fds[2] = {ask_and_not_read(), ask_and_not_read()};
    static const char large[] = "GET /large?size=30000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    static const char small[] = "GET /large?size=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char *answer = exchange(large, sizeof large - 1);
    assert_non_null(strstr(answer, "503 Service Unavailable"));
    assert_non_null(strstr(answer, "wait for their readers"));
    free(answer);
    answer = exchange(small, sizeof small - 1); /* health and metrics are served all the same */
    assert_non_null(strstr(answer, "\r\n\r\nzzz"));
    free(answer);
    close(fds[0]);
    close(fds[1]);
    for (int i = 0; i < 1000; i++) { /* the server notices in its own time */
        answer = exchange(large, sizeof large - 1);
        bool is_served = strstr(answer, "200 OK") != NULL;
        free(answer);
        if (is_served)
            return;
        usleep(5000);
    }
    fail();
}

static void responses_are_counted_by_class(void **state)
{
    (void)state;
    struct http_stats before = http_server_stats(server);
    assert_answer("GET /nowhere", "HTTP/1.1 404 ", "{\"error\": \"/nowhere: there is nothing here\"}\n");
    struct http_stats after = http_server_stats(server);
    assert_int_equal(after.responses[4] - before.responses[4], 1);
    assert_int_equal(after.responses[2], before.responses[2]);
}

static void a_bind_that_fails_says_where_and_why(void **state)
{
    (void)state;
    struct http_server *second = NULL;
    struct errmsg msg;
    char expected[100];
    struct http_config config = {.address = "127.0.0.1", .port = http_server_port(server)};
    assert_int_equal(http_server_new(&second, &config, routes, 1, &msg), ERR_EXISTS);
    snprintf(expected, sizeof expected, "127.0.0.1:%u: cannot listen: Address already in use", http_server_port(server));
    assert_string_equal(msg.text, expected);
    config.address = "localhost.invalid";
    assert_int_equal(http_server_new(&second, &config, routes, 1, &msg), ERR_INVALID);
    assert_non_null(strstr(msg.text, "localhost.invalid:"));
    assert_non_null(strstr(msg.text, "expected a numeric IPv4 or IPv6 address"));
    config.address = "192.0.2.1";
    config.port = 0;
    assert_int_not_equal(http_server_new(&second, &config, routes, 1, &msg), 0);
    assert_null(second);
}

static void garbage_does_not_hurt(void **state)
{
    (void)state;
    static const char garbage[] = "\x16\x03\x01\x02garbage\r\n\r\n";
    free(exchange(garbage, sizeof garbage - 1));
    char *long_line = malloc(200000);
    memset(long_line, 'a', 200000);
    memcpy(long_line, "GET /", 5);
    memcpy(long_line + 199900, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 41);
    free(exchange(long_line, 199941));
    free(long_line);
    assert_answer("HEAD /echo", "HTTP/1.1 200 OK", "");
}

static int start_server(void **state)
{
    (void)state;
    struct errmsg msg;
    struct http_config config = {.thread_name = "test-http",
                                 .body_size_max = 20000,
                                 .response_size_max = 40000000,
                                 .response_total_max = 80000000,
                                 .thread_count = 2,
                                 .arg = (void *)(uintptr_t) "server"};
    logger_set_threshold(LOGGER_OFF);
    return http_server_new(&server, &config, routes, sizeof routes / sizeof routes[0], &msg);
}

static int stop_server(void **state)
{
    (void)state;
    http_server_free(server);
    http_server_free(NULL);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_reach_their_handlers),
        cmocka_unit_test(what_is_not_there_is_said_in_json),
        cmocka_unit_test(headers_are_set),
        cmocka_unit_test(bodies_are_collected_and_bounded),
        cmocka_unit_test(a_chunked_body_past_the_limit_is_refused),
        cmocka_unit_test(large_answers_pass_and_too_large_ones_are_said),
        cmocka_unit_test(answers_for_slow_readers_are_bounded_together),
        cmocka_unit_test(responses_are_counted_by_class),
        cmocka_unit_test(a_bind_that_fails_says_where_and_why),
        cmocka_unit_test(garbage_does_not_hurt),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
