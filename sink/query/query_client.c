#include "sink/query/query_client.h"

#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_S 5
#define ANSWER_TIMEOUT_S 120

static enum err connect_to(int *fd_out, const char *host, const char *port, struct errmsg *msg)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int error = getaddrinfo(host, port, &hints, &list);
    if (error)
        return err_set(msg, ERR_NOTFOUND, "%s: %s", host, gai_strerror(error));
    enum err err = err_set(msg, ERR_NOTFOUND, "%s:%s: no address", host, port);
    for (const struct addrinfo *at = list; at && err; at = at->ai_next) {
        int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
        struct timeval timeout = {.tv_sec = CONNECT_TIMEOUT_S};
        if (fd >= 0)
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (fd >= 0 && connect(fd, at->ai_addr, at->ai_addrlen) == 0) {
            *fd_out = fd;
            err = ERR_OK;
            continue;
        }
        err = err_set(msg, ERR_NOTFOUND, "no sink answers at %s:%s: %s", host, port, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    freeaddrinfo(list);
    return err;
}

static enum err send_all(int fd, const struct buf *request)
{
    for (size_t sent = 0; sent < request->size;) {
        ssize_t count = send(fd, request->data + sent, request->size - sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return ERR_IO;
        sent += (size_t)count;
    }
    return ERR_OK;
}

static enum err receive_all(int fd, struct buf *answer)
{
    struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    for (;;) {
        uint8_t *at = buf_reserve(answer, 65536);
        if (!at)
            return answer->err;
        ssize_t count = recv(fd, at, 65536, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return ERR_IO;
        if (count == 0)
            return ERR_OK;
        buf_commit(answer, (size_t)count);
    }
}

/* A number in the head, which is `text` up to `end`. */
static bool head_number(const char *text, const char *end, const char *name, int64_t *value_out)
{
    size_t size = strlen(name);
    for (const char *line = text; (line = strstr(line, "\r\n")) != NULL && line < end;) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':') {
            *value_out = strtoll(line + size + 1, NULL, 10);
            return true;
        }
    }
    return false;
}

static enum err split_answer(struct buf *answer, struct query_answer *answer_out, struct buf *body_out)
{
    const char *text = buf_string(answer);
    const char *end = strstr(text, "\r\n\r\n");
    *answer_out = (struct query_answer){.status = 0};
    if (!end || sscanf(text, "HTTP/%*u.%*u %u", &answer_out->status) != 1)
        return ERR_CORRUPT;
    answer_out->is_cut = head_number(text, end, QUERY_NEXT_HEADER, &answer_out->next_ns);
    size_t head_size = (size_t)(end - text) + 4;
    int64_t length = -1;
    head_number(text, end, "Content-Length", &length);
    struct span body = span_of(answer->data + head_size, answer->size - head_size);
    if (length >= 0 && (uint64_t)length > body.size)
        return ERR_CORRUPT;
    buf_put_span(body_out, body);
    return body_out->err;
}

enum err query_client_get(const char *host, const char *port, const char *target, struct query_answer *answer_out, struct buf *body_out,
                          struct errmsg *msg)
{
    int fd = -1;
    struct buf request, answer;
    enum err err = connect_to(&fd, host, port, msg);
    if (err)
        return err;
    buf_init(&request, 1 << 20);
    buf_init(&answer, QUERY_CLIENT_ANSWER_MAX);
    buf_printf(&request, "GET %s HTTP/1.0\r\nHost: %s\r\nConnection: close\r\n\r\n", target, host);
    err = request.err ? request.err : send_all(fd, &request);
    if (!err)
        err = receive_all(fd, &answer);
    if (!err)
        err = split_answer(&answer, answer_out, body_out);
    if (err)
        err_set(msg, err, "%s:%s: %s", host, port, err_text(err));
    close(fd);
    buf_deinit(&request);
    buf_deinit(&answer);
    return err;
}

void query_client_put_escaped(struct buf *out, const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (isalnum(c) || strchr("-._~", c))
            buf_put_byte(out, c);
        else
            buf_printf(out, "%%%02X", c);
    }
}

enum err query_client_split_url(char host_out[256], char port_out[16], const char *url)
{
    if (strncmp(url, "http://", 7) == 0)
        url += 7;
    size_t size = strcspn(url, "/");
    if (url[size] == '/' && url[size + 1] != 0)
        return ERR_INVALID;
    const char *host = url;
    size_t host_size = 0, rest = 0;
    if (url[0] == '[') {
        const char *close_bracket = memchr(url, ']', size);
        if (!close_bracket)
            return ERR_INVALID;
        host = url + 1;
        host_size = (size_t)(close_bracket - host);
        rest = host_size + 2;
    } else {
        while (host_size < size && url[host_size] != ':')
            host_size++;
        rest = host_size;
    }
    if (host_size == 0 || host_size >= 256)
        return ERR_INVALID;
    snprintf(host_out, 256, "%.*s", (int)host_size, host);
    if (rest == size) {
        snprintf(port_out, 16, "80");
        return ERR_OK;
    }
    size_t port_size = size - rest - 1;
    if (url[rest] != ':' || port_size == 0 || port_size > 5 || strspn(url + rest + 1, "0123456789") < port_size)
        return ERR_INVALID;
    snprintf(port_out, 16, "%.*s", (int)port_size, url + rest + 1);
    return ERR_OK;
}
