#include "broker/net/listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/check.h"
#include "common/logger.h"

const char listener_local[] = "(loopback)";

const char *listener_refusal_name(enum listener_refusal refusal)
{
    static const char *const names[] = {
#define X(name, text) [LISTENER_REFUSED_##name] = text,
        LISTENER_REFUSAL_MAP(X)
#undef X
    };
    CHECK(refusal < LISTENER_REFUSAL_COUNT);
    return names[refusal];
}

/* The kernel silently cuts the backlog to net.core.somaxconn; a storm then meets dropped SYNs while the broker idles. */
static void listener_check_backlog(int backlog)
{
    FILE *file = fopen("/proc/sys/net/core/somaxconn", "re");
    int limit = 0;
    if (!file)
        return;
    if (fscanf(file, "%d", &limit) == 1 && limit < backlog)
        LOG_WARNING("net.core.somaxconn is smaller than backlog: connections of a storm will be dropped by the kernel",
                    LOG_I64("somaxconn", limit), LOG_I64("backlog", backlog));
    (void)fclose(file);
}

static void listener_describe(struct listener_socket *sock)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } name = {0};
    socklen_t size = sizeof name;
    CHECK(getsockname(sock->fd, &name.any, &size) == 0);
    if (name.any.sa_family == AF_INET6) {
        (void)inet_ntop(AF_INET6, &name.v6.sin6_addr, sock->address, sizeof sock->address);
        sock->port = ntohs(name.v6.sin6_port);
    } else {
        (void)inet_ntop(AF_INET, &name.v4.sin_addr, sock->address, sizeof sock->address);
        sock->port = ntohs(name.v4.sin_port);
    }
}

/* One socket. Returns 0 or an errno. */
static int listener_bind(struct listener *listener, const struct addrinfo *info)
{
    const struct listener_config *config = &listener->config;
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    /* Accepted sockets inherit NODELAY and KEEPALIVE from this one: two system calls less for each connection. */
    int one = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    if (config->tcp_nodelay)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (info->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, config->backlog) != 0) {
        int errnum = errno;
        close(fd);
        return errnum;
    }
    struct listener_socket *sock = &listener->sockets[listener->socket_count++];
    sock->fd = fd;
    listener_describe(sock);
    LOG_NOTICE("listening on", LOG_TEXT("address", sock->address), LOG_U64("port", sock->port),
               LOG_TEXT("protocol", listener->tls ? "tls" : "tcp"));
    return 0;
}

static enum err listener_bind_all(struct listener *listener, struct errmsg *msg)
{
    const struct listener_config *config = &listener->config;
    bool is_local = config->address == listener_local;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | (is_local ? 0 : AI_PASSIVE)};
    struct addrinfo *infos = NULL;
    char port[8];
    (void)snprintf(port, sizeof port, "%u", config->port);
    const char *shown = is_local ? "localhost" : config->address ? config->address : "*";
    int code = getaddrinfo(is_local ? NULL : config->address, port, &hints, &infos);
    if (code != 0)
        return err_set(msg, ERR_INVALID, "listener %u %s: %s", config->port, shown, gai_strerror(code));
    enum err err = ERR_OK;
    for (struct addrinfo *info = infos; info && err == ERR_OK && listener->socket_count < LISTENER_SOCKETS_MAX; info = info->ai_next) {
        if (info->ai_family != AF_INET && info->ai_family != AF_INET6)
            continue;
        /* With port 0 the other addresses take the port that the first one got. */
        if (config->port == 0 && listener->socket_count > 0) {
            uint16_t chosen = htons(listener->sockets[0].port);
            if (info->ai_family == AF_INET6)
                ((struct sockaddr_in6 *)(void *)info->ai_addr)->sin6_port = chosen;
            else
                ((struct sockaddr_in *)(void *)info->ai_addr)->sin_port = chosen;
        }
        int errnum = listener_bind(listener, info);
        if (errnum == EADDRINUSE && config->port == 0 && listener->socket_count > 0)
            LOG_WARNING("the port chosen by the kernel is taken on this address; it is left out", LOG_TEXT("listener", shown));
        else if (errnum == EAFNOSUPPORT || (errnum == EADDRNOTAVAIL && !config->address) || (errnum == EADDRNOTAVAIL && is_local))
            LOG_INFO("no such address family here", LOG_TEXT("listener", shown));
        else if (errnum != 0)
            err = err_set(msg, err_from_errno(errnum), "listener %u %s: %s", config->port, shown, strerror(errnum));
    }
    freeaddrinfo(infos);
    if (err == ERR_OK && listener->socket_count == 0)
        err = err_set(msg, ERR_INVALID, "listener %u %s: no usable address", config->port, shown);
    return err;
}

enum err listener_open(struct listener *listener, uint16_t index, const struct listener_config *config, struct errmsg *msg)
{
    memset(listener, 0, sizeof *listener);
    listener->index = index;
    listener->config = *config;
    admission_init(&listener->accepts, config->accept_rate, config->accept_burst);
    admission_init(&listener->connects, config->connection_rate, config->connection_burst);
    enum err err = ERR_OK;
    if (config->tls.certificate_path)
        err = tls_server_new(&listener->tls, &config->tls, msg);
    if (err == ERR_OK)
        err = listener_bind_all(listener, msg);
    if (err != ERR_OK)
        listener_deinit(listener);
    else
        listener_check_backlog(config->backlog);
    return err;
}

void listener_close_sockets(struct listener *listener)
{
    for (size_t i = 0; i < listener->socket_count; i++) {
        if (listener->sockets[i].fd >= 0)
            close(listener->sockets[i].fd);
        listener->sockets[i].fd = -1;
    }
}

void listener_deinit(struct listener *listener)
{
    listener_close_sockets(listener);
    tls_server_free(listener->tls);
    listener->tls = NULL;
    listener->socket_count = 0;
}
