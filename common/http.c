/* libmicrohttpd calls on_access() several times for one request: when its headers are read, for each piece of the body, and once more at
 * the end. The first call makes a struct exchange, the pieces go to its buffer, the last call finds the route, runs the handler and queues
 * the response; on_completed() frees the exchange.
 *
 * We bind the socket ourselves, because the library does not say why it could not. */
#include "common/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/check.h"
#include "common/logger.h"

#define CONNECTION_LIMIT_DEFAULT 64
#define TIMEOUT_S_DEFAULT 30
#define BODY_SIZE_MAX_DEFAULT ((size_t)1 << 20)
#define RESPONSE_SIZE_MAX_DEFAULT ((size_t)64 << 20)
#define RESPONSE_TOTAL_MAX_DEFAULT ((size_t)256 << 20)
#define RESPONSE_LARGE ((size_t)1 << 20)          /* smaller ones are never refused: health, metrics, errors */
#define CONNECTION_MEMORY_SIZE ((size_t)64 << 10) /* headers and query string of a request have to fit */
#define DISCARD_SIZE_MAX ((size_t)16 << 20)       /* a body that is too large is read this far, so that its sender sees the 413 */
#define LISTEN_BACKLOG 128
#define ARGUMENT_COUNT_MAX 1000
#define HEADER_COUNT_MAX 8

struct http_server {
    struct MHD_Daemon *daemon;
    const struct http_route *routes;
    size_t route_count;
    size_t body_size_max;
    size_t response_size_max;
    size_t response_total_max;
    size_t response_total; /* atomic: bytes of bodies that the library holds */
    void *arg;
    char thread_name[16];
    uint16_t port;
    struct http_stats stats; /* relaxed atomics, any of the server's threads */
};

struct argument {
    const char *name;
    const char *value;
};

#define EXCHANGE_MAGIC 0x68747470u

/* One request while it is being read and answered. */
struct exchange {
    uint32_t magic;
    struct http_server *server;
    struct MHD_Connection *connection;
    struct buf body;
    size_t discarded; /* bytes of a body past the limit */
    char *form_text;  /* the form body, decoded in place; `form` points into it */
    struct argument *form;
    size_t form_count;
    bool is_answered;
};

struct http_response {
    struct buf body;
    unsigned status;
    char type[64];
    struct {
        char *name;
        char *value;
    } headers[HEADER_COUNT_MAX];
    size_t header_count;
};

/* ---- response ----------------------------------------------------------------------------------------------------------------------- */

static void response_init(struct http_response *response, size_t size_max)
{
    memset(response, 0, sizeof *response);
    buf_init(&response->body, size_max);
    response->status = MHD_HTTP_OK;
    http_response_type(response, "application/json");
}

static void response_deinit(struct http_response *response)
{
    buf_deinit(&response->body);
    for (size_t i = 0; i < response->header_count; i++) {
        free(response->headers[i].name);
        free(response->headers[i].value);
    }
    response->header_count = 0;
}

void http_response_status(struct http_response *response, unsigned status)
{
    CHECK(status >= 200);
    CHECK(status < 600);
    response->status = status;
}

void http_response_type(struct http_response *response, const char *content_type)
{
    CHECK(strlen(content_type) < sizeof response->type);
    snprintf(response->type, sizeof response->type, "%s", content_type);
}

void http_response_header(struct http_response *response, const char *name, const char *value)
{
    CHECK(response->header_count < HEADER_COUNT_MAX);
    char *name_copy = strdup(name);
    char *value_copy = strdup(value);
    if (!name_copy || !value_copy) {
        free(name_copy);
        free(value_copy);
        response->body.err = ERR_NOMEM;
        return;
    }
    response->headers[response->header_count].name = name_copy;
    response->headers[response->header_count++].value = value_copy;
}

struct buf *http_response_body(struct http_response *response) { return &response->body; }

void http_response_error(struct http_response *response, unsigned status, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    buf_deinit(&response->body); /* its memory too: what is left is small */
    http_response_status(response, status);
    http_response_type(response, "application/json");
    buf_put_string(&response->body, "{\"error\": ");
    buf_put_json_string(&response->body, span_of_string(text));
    buf_put_string(&response->body, "}\n");
}

/* A body on its way out. */
struct outgoing {
    struct http_server *server;
    void *data;
    size_t size;
};

static void outgoing_free(void *arg)
{
    struct outgoing *outgoing = arg;
    __atomic_fetch_sub(&outgoing->server->response_total, outgoing->size, __ATOMIC_RELAXED);
    free(outgoing->data);
    free(outgoing);
}

/* Count the body in. NULL: it has to wait, or there is no memory. */
static struct outgoing *outgoing_new(struct http_server *server, const struct buf *body)
{
    size_t size = body->capacity;
    size_t total = __atomic_add_fetch(&server->response_total, size, __ATOMIC_RELAXED);
    bool is_too_much = size >= RESPONSE_LARGE && total > server->response_total_max;
    struct outgoing *outgoing = is_too_much ? NULL : malloc(sizeof *outgoing);
    if (outgoing)
        *outgoing = (struct outgoing){server, body->data, size};
    else
        __atomic_fetch_sub(&server->response_total, size, __ATOMIC_RELAXED);
    return outgoing;
}

static enum MHD_Result response_send(struct exchange *exchange, struct http_response *response)
{
    if (response->body.err) {
        enum err err = response->body.err;
        LOG_WARNING("HTTP response not sent", LOG_ERR("error", err));
        http_response_error(response, MHD_HTTP_INTERNAL_SERVER_ERROR, "the response is %s",
                            err == ERR_TOOLARGE ? "larger than the limit; ask for less" : "not possible: out of memory");
    }
    struct outgoing *outgoing = response->body.size ? outgoing_new(exchange->server, &response->body) : NULL;
    if (!outgoing && response->body.size) {
        http_response_error(response, MHD_HTTP_SERVICE_UNAVAILABLE, "too many large answers wait for their readers; ask again later");
        outgoing = outgoing_new(exchange->server, &response->body);
    }
    struct MHD_Response *reply;
    if (!outgoing) {
        static char nothing[1];
        reply = MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);
    } else {
        reply = MHD_create_response_from_buffer_with_free_callback_cls(response->body.size, response->body.data, outgoing_free, outgoing);
        response->body.data = NULL; /* taken */
        if (!reply)
            outgoing_free(outgoing);
    }
    if (!reply)
        return MHD_NO;
    MHD_add_response_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, response->type);
    for (size_t i = 0; i < response->header_count; i++)
        MHD_add_response_header(reply, response->headers[i].name, response->headers[i].value);
    enum MHD_Result result = MHD_queue_response(exchange->connection, response->status, reply);
    MHD_destroy_response(reply);
    exchange->is_answered = true;
    __atomic_fetch_add(&exchange->server->stats.responses[response->status / 100], 1, __ATOMIC_RELAXED);
    return result;
}

/* ---- request ------------------------------------------------------------------------------------------------------------------------ */

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return -1;
}

/* Decode '+' and %xx in place; a malformed escape stays as it is. */
static void decode_form_text(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (*from == '%' && hex_digit(from[1]) >= 0 && hex_digit(from[2]) >= 0) {
            *to++ = (char)(hex_digit(from[1]) << 4 | hex_digit(from[2]));
            from += 2;
        } else {
            *to++ = *from == '+' ? ' ' : *from;
        }
    }
    *to = '\0';
}

static bool is_form(struct MHD_Connection *connection)
{
    static const char form_type[] = "application/x-www-form-urlencoded";
    const char *type = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_TYPE);
    return type && strncasecmp(type, form_type, sizeof form_type - 1) == 0;
}

/* Split a form body into arguments. Returns false without memory. */
static bool exchange_parse_form(struct exchange *exchange)
{
    exchange->form_text = malloc(exchange->body.size + 1);
    exchange->form = calloc(ARGUMENT_COUNT_MAX, sizeof *exchange->form);
    if (!exchange->form_text || !exchange->form)
        return false;
    if (exchange->body.size > 0)
        memcpy(exchange->form_text, exchange->body.data, exchange->body.size);
    exchange->form_text[exchange->body.size] = '\0';
    char *next = exchange->form_text;
    char *pair;
    while ((pair = strsep(&next, "&")) && exchange->form_count < ARGUMENT_COUNT_MAX) {
        char *value = pair;
        char *name = strsep(&value, "=");
        if (!*name)
            continue;
        decode_form_text(name);
        if (value)
            decode_form_text(value);
        exchange->form[exchange->form_count++] = (struct argument){name, value ? value : ""};
    }
    return true;
}

struct argument_search {
    const char *name;
    size_t index;
    const char *found;
};

static enum MHD_Result on_argument(void *arg, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct argument_search *search = arg;
    (void)kind;
    if (strcmp(name, search->name) != 0)
        return MHD_YES;
    if (search->index > 0) {
        search->index--;
        return MHD_YES;
    }
    search->found = value ? value : "";
    return MHD_NO;
}

static struct exchange *exchange_of(const struct http_request *request)
{
    struct exchange *exchange = request->internal;
    CHECK(exchange != NULL);
    CHECK(exchange->magic == EXCHANGE_MAGIC);
    return exchange;
}

const char *http_request_query_at(const struct http_request *request, const char *name, size_t index)
{
    struct exchange *exchange = exchange_of(request);
    struct argument_search search = {name, index, NULL};
    MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, on_argument, &search);
    for (size_t i = 0; !search.found && i < exchange->form_count; i++)
        on_argument(&search, MHD_POSTDATA_KIND, exchange->form[i].name, exchange->form[i].value);
    return search.found;
}

const char *http_request_query(const struct http_request *request, const char *name) { return http_request_query_at(request, name, 0); }

struct unknown_search {
    const char *const *known;
    size_t count;
    const char *found;
};

static enum MHD_Result on_unknown(void *arg, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct unknown_search *search = arg;
    (void)kind;
    (void)value;
    for (size_t i = 0; i < search->count; i++)
        if (!strcmp(name, search->known[i]))
            return MHD_YES;
    search->found = name;
    return MHD_NO;
}

const char *http_request_unknown_query(const struct http_request *request, const char *const *known, size_t count)
{
    struct unknown_search search = {known, count, NULL};
    MHD_get_connection_values(exchange_of(request)->connection, MHD_GET_ARGUMENT_KIND, on_unknown, &search);
    return search.found;
}

const char *http_request_header(const struct http_request *request, const char *name)
{
    return MHD_lookup_connection_value(exchange_of(request)->connection, MHD_HEADER_KIND, name);
}

static void format_peer(char *text, size_t size, const struct sockaddr *address)
{
    char host[INET6_ADDRSTRLEN + 16] = "unknown";
    char port[8] = "0";
    socklen_t length = address && address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (address)
        getnameinfo(address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(text, size, address && address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* ---- routing ------------------------------------------------------------------------------------------------------------------------ */

static bool route_matches(const struct http_route *route, const char *path)
{
    size_t length = strlen(route->path);
    if (!route->is_prefix)
        return strcmp(route->path, path) == 0;
    if (strncmp(route->path, path, length) != 0)
        return false;
    return path[length] == '\0' || path[length] == '/' || (length > 0 && route->path[length - 1] == '/');
}

/* The best path: the longest, an exact one before a prefix. */
static const struct http_route *find_path(const struct http_server *server, const char *path)
{
    const struct http_route *best = NULL;
    for (size_t i = 0; i < server->route_count; i++) {
        const struct http_route *route = &server->routes[i];
        if (!route_matches(route, path))
            continue;
        size_t length = strlen(route->path);
        if (!best || length > strlen(best->path) || (length == strlen(best->path) && !route->is_prefix && best->is_prefix))
            best = route;
    }
    return best;
}

static bool is_same_path(const struct http_route *a, const struct http_route *b)
{
    return a->is_prefix == b->is_prefix && strcmp(a->path, b->path) == 0;
}

static const struct http_route *find_method(const struct http_server *server, const struct http_route *path, const char *method)
{
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (size_t i = 0; i < server->route_count; i++) {
        const struct http_route *route = &server->routes[i];
        if (is_same_path(route, path) && (strcmp(route->method, method) == 0 || strcmp(route->method, "*") == 0))
            return route;
    }
    return NULL;
}

static void refuse_method(const struct http_server *server, const struct http_route *path, const struct http_request *request,
                          struct http_response *response)
{
    char allowed[128] = "";
    for (size_t i = 0; i < server->route_count; i++) {
        size_t used = strlen(allowed);
        if (is_same_path(&server->routes[i], path))
            snprintf(allowed + used, sizeof allowed - used, "%s%s", used ? ", " : "", server->routes[i].method);
    }
    http_response_error(response, MHD_HTTP_METHOD_NOT_ALLOWED, "%s does not take %s (allowed: %s)", request->path, request->method,
                        allowed);
    http_response_header(response, MHD_HTTP_HEADER_ALLOW, allowed);
}

static void dispatch(struct http_server *server, struct http_request *request, struct http_response *response)
{
    const struct http_route *path = find_path(server, request->path);
    if (!path) {
        http_response_error(response, MHD_HTTP_NOT_FOUND, "%s: there is nothing here", request->path);
        return;
    }
    const struct http_route *route = find_method(server, path, request->method);
    if (!route) {
        refuse_method(server, path, request, response);
        return;
    }
    request->rest = route->is_prefix ? request->path + strlen(route->path) : "";
    route->handler(route->arg ? route->arg : server->arg, request, response);
}

/* ---- libmicrohttpd ------------------------------------------------------------------------------------------------------------------- */

static enum MHD_Result answer(struct exchange *exchange, const char *url, const char *method)
{
    struct http_server *server = exchange->server;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    char peer[INET6_ADDRSTRLEN + 32];
    format_peer(peer, sizeof peer, info ? info->client_addr : NULL);
    struct http_request request = {method, url, "", buf_span(&exchange->body), peer, exchange};
    struct http_response response;
    response_init(&response, server->response_size_max);
    if (exchange->discarded > 0 || exchange->body.err == ERR_TOOLARGE)
        http_response_error(&response, MHD_HTTP_CONTENT_TOO_LARGE, "the body is larger than the limit of %zu bytes", server->body_size_max);
    else if (exchange->body.err || (is_form(exchange->connection) && !exchange_parse_form(exchange)))
        http_response_error(&response, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory");
    else
        dispatch(server, &request, &response);
    enum MHD_Result result = response_send(exchange, &response);
    response_deinit(&response);
    return result;
}

/* A body that is announced too large is refused before it is sent. */
static bool is_announced_too_large(struct exchange *exchange)
{
    const char *text = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return text && strtoull(text, NULL, 10) > exchange->server->body_size_max;
}

static void name_thread(const struct http_server *server)
{
    static __thread bool is_named;
    if (!is_named)
        pthread_setname_np(pthread_self(), server->thread_name);
    is_named = true;
}

static enum MHD_Result on_access(void *arg, struct MHD_Connection *connection, const char *url, const char *method, const char *version,
                                 const char *upload, size_t *upload_size, void **state)
{
    struct http_server *server = arg;
    struct exchange *exchange = *state;
    (void)version;
    if (!exchange) {
        name_thread(server);
        exchange = calloc(1, sizeof *exchange);
        if (!exchange)
            return MHD_NO;
        exchange->magic = EXCHANGE_MAGIC;
        exchange->server = server;
        exchange->connection = connection;
        buf_init(&exchange->body, server->body_size_max);
        *state = exchange;
        if (is_announced_too_large(exchange)) {
            exchange->discarded = 1;
            return answer(exchange, url, method);
        }
        return MHD_YES;
    }
    CHECK(exchange->magic == EXCHANGE_MAGIC);
    if (*upload_size > 0) {
        buf_put(&exchange->body, upload, *upload_size);
        if (exchange->body.err)
            exchange->discarded += *upload_size;
        *upload_size = 0;
        return exchange->discarded > DISCARD_SIZE_MAX ? MHD_NO : MHD_YES;
    }
    return exchange->is_answered ? MHD_YES : answer(exchange, url, method);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **state, enum MHD_RequestTerminationCode code)
{
    struct exchange *exchange = *state;
    (void)arg;
    (void)connection;
    (void)code;
    if (!exchange)
        return;
    CHECK(exchange->magic == EXCHANGE_MAGIC);
    buf_deinit(&exchange->body);
    free(exchange->form_text);
    free(exchange->form);
    exchange->magic = 0;
    free(exchange);
    *state = NULL;
}

__attribute__((format(printf, 2, 0))) static void on_library_log(void *arg, const char *format, va_list args)
{
    char text[256];
    (void)arg;
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    LOG_DEBUG("HTTP library", LOG_TEXT("text", text));
}

/* ---- life --------------------------------------------------------------------------------------------------------------------------- */

static uint16_t socket_port(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        return 0;
    if (address.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): getsockname has filled it in */
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

static enum err open_listener(int *fd_out, const char *host, uint16_t port, struct errmsg *msg)
{
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *address;
    const char *bracket = strchr(host, ':') ? "[" : "";
    const char *closing = *bracket ? "]" : "";
    int rc = getaddrinfo(host, service, &hints, &address);
    if (rc != 0)
        return err_set(msg, ERR_INVALID, "%s%s%s:%u: %s (expected a numeric IPv4 or IPv6 address)", bracket, host, closing, port,
                       gai_strerror(rc));
    int one = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0) {
        freeaddrinfo(address);
        *fd_out = fd;
        return ERR_OK;
    }
    int errnum = errno;
    if (fd >= 0)
        close(fd);
    freeaddrinfo(address);
    return err_set(msg, errnum == EADDRINUSE ? ERR_EXISTS : err_from_errno(errnum), "%s%s%s:%u: cannot listen: %s", bracket, host, closing,
                   port, strerror(errnum));
}

/* Signals are the main thread's: the server's threads inherit a mask without them. */
static struct MHD_Daemon *start_daemon(struct http_server *server, const struct http_config *config, int fd)
{
    sigset_t all, before;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ERROR_LOG;
    unsigned thread_count = config->thread_count > 1 ? config->thread_count : 0; /* 0: one, without a pool */
    unsigned connection_limit = config->connection_limit ? config->connection_limit : CONNECTION_LIMIT_DEFAULT;
    if (connection_limit < thread_count)
        connection_limit = thread_count;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    struct MHD_Daemon *daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_access, server, MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_CONNECTION_LIMIT, connection_limit, MHD_OPTION_CONNECTION_TIMEOUT,
        config->timeout_s ? config->timeout_s : (unsigned)TIMEOUT_S_DEFAULT, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY_SIZE,
        MHD_OPTION_THREAD_POOL_SIZE, thread_count, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return daemon;
}

enum err http_server_new(struct http_server **server_out, const struct http_config *config, const struct http_route *routes,
                         size_t route_count, struct errmsg *msg)
{
    const char *host = config->address && *config->address ? config->address : "127.0.0.1";
    int fd = -1;
    enum err err = open_listener(&fd, host, config->port, msg);
    if (err)
        return err;
    struct http_server *server = calloc(1, sizeof *server);
    if (!server) {
        close(fd);
        return err_set(msg, ERR_NOMEM, "out of memory");
    }
    server->routes = routes;
    server->route_count = route_count;
    server->body_size_max = config->body_size_max ? config->body_size_max : BODY_SIZE_MAX_DEFAULT;
    server->response_size_max = config->response_size_max ? config->response_size_max : RESPONSE_SIZE_MAX_DEFAULT;
    server->response_total_max = config->response_total_max ? config->response_total_max : RESPONSE_TOTAL_MAX_DEFAULT;
    server->arg = config->arg;
    server->port = socket_port(fd);
    snprintf(server->thread_name, sizeof server->thread_name, "%s", config->thread_name ? config->thread_name : "http");
    server->daemon = start_daemon(server, config, fd);
    if (!server->daemon) {
        close(fd);
        free(server);
        return err_set(msg, ERR_IO, "%s:%u: the HTTP server does not start", host, config->port);
    }
    *server_out = server;
    return ERR_OK;
}

void http_server_free(struct http_server *server)
{
    if (!server)
        return;
    MHD_stop_daemon(server->daemon); /* closes the listening socket too */
    free(server);
}

uint16_t http_server_port(const struct http_server *server) { return server->port; }

struct http_stats http_server_stats(const struct http_server *server)
{
    struct http_stats stats;
    for (size_t i = 0; i < sizeof stats.responses / sizeof stats.responses[0]; i++)
        stats.responses[i] = __atomic_load_n(&server->stats.responses[i], __ATOMIC_RELAXED);
    return stats;
}
