/* A small HTTP server for the admin and query APIs: libmicrohttpd behind a table of routes.
 *
 * The server runs its own thread(s) (epoll); handlers are called there, must not block long, and reach other threads only by what those
 * offer. A request is complete, with its body, when a handler sees it; a response is built in memory, up to response_size_max. Unknown
 * paths get 404, known ones with another method 405 with Allow, too large bodies 413, too large responses 500, large ones while too many
 * wait for slow readers 503, all as {"error": "..."}. HEAD is answered like GET without the body.
 *
 *     static void on_health(void *arg, const struct http_request *request, struct http_response *response)
 *     {
 *         http_response_type(response, "application/json");
 *         buf_put_string(http_response_body(response), "{\"status\":\"ok\"}\n");
 *     }
 *     static const struct http_route routes[] = {{"GET", "/healthz", false, on_health, NULL}};
 *     err = http_server_new(&server, &(struct http_config){.address = "127.0.0.1", .port = 9100}, routes, 1, &msg);
 *
 * No TLS and no authentication here: bind it to a trusted address. */
#ifndef TIDEGATE_COMMON_HTTP_H
#define TIDEGATE_COMMON_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/bytes.h"
#include "common/err.h"

struct http_server;
struct http_response;

/* A request; everything is borrowed until the handler returns. */
struct http_request {
    const char *method; /* "GET", ... */
    const char *path;   /* decoded, begins with '/' */
    const char *rest;   /* what follows the route's path when that is a prefix, "" otherwise */
    struct span body;
    const char *peer; /* "address:port" */
    void *internal;
};

typedef void (*http_handler_fn)(void *arg, const struct http_request *request, struct http_response *response);

/* One row of the table. The longest path that matches wins. `method` may be "*". With arg NULL the server's arg is given. */
struct http_route {
    const char *method;
    const char *path;
    bool is_prefix;
    http_handler_fn handler;
    void *arg;
};

/* Zero means the default in brackets. */
struct http_config {
    const char *address;       /* numeric IPv4 or IPv6 ["127.0.0.1"] */
    uint16_t port;             /* 0: the kernel picks one, see http_server_port() */
    unsigned connection_limit; /* [64] */
    unsigned timeout_s;        /* idle connections are closed after it [30] */
    unsigned thread_count;     /* [1] */
    size_t body_size_max;      /* bytes of a request's body [1 MiB] */
    size_t response_size_max;  /* bytes of a response's body [64 MiB] */
    size_t response_total_max; /* bytes of all responses that their readers have not taken yet; beyond, a large one gets 503 [256 MiB] */
    const char *thread_name;   /* as seen in top [http], at most 15 characters */
    void *arg;                 /* for routes without their own */
};

/* Listen and serve. The routes (borrowed) live as long as the server.
 * Returns 0, ERR_INVALID (address), or why it cannot listen, with "address:port: reason" in msg. */
enum err http_server_new(struct http_server **server_out, const struct http_config *config, const struct http_route *routes,
                         size_t route_count, struct errmsg *msg) must_check;
/* Stop: no new requests, running handlers end first, all connections are closed. NULL is allowed. */
void http_server_free(struct http_server *server);
/* The port in use. Thread: any. */
uint16_t http_server_port(const struct http_server *server);

/* A decoded argument of the query string (or of a form body, application/x-www-form-urlencoded); NULL when absent, "" when it has no value.
 * The n-th (0-based) of a repeated one by the second form. */
const char *http_request_query(const struct http_request *request, const char *name);
const char *http_request_query_at(const struct http_request *request, const char *name, size_t index);
/* The first argument of the query string that is not among the `count` known names; NULL when there is none. A misspelt argument is better
 * refused than passed over. */
const char *http_request_unknown_query(const struct http_request *request, const char *const *known, size_t count);
/* A header; NULL when absent. */
const char *http_request_header(const struct http_request *request, const char *name);

/* The response; starts as 200, "application/json", empty. */
void http_response_status(struct http_response *response, unsigned status);
void http_response_type(struct http_response *response, const char *content_type);
void http_response_header(struct http_response *response, const char *name, const char *value);
struct buf *http_response_body(struct http_response *response);
/* Throw away what was built: this status and {"error": "..."}. */
void http_response_error(struct http_response *response, unsigned status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Requests answered by class of status (index 1..5), and connections refused. Thread: any. */
struct http_stats {
    uint64_t responses[6];
};
struct http_stats http_server_stats(const struct http_server *server);

#endif
