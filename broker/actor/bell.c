#include "broker/actor/bell.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum err bell_init(struct bell *bell)
{
    bell->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return bell->fd < 0 ? err_from_errno(errno) : ERR_OK;
}

void bell_deinit(struct bell *bell)
{
    close(bell->fd);
    bell->fd = -1;
}

void bell_ring(void *arg)
{
    struct bell *bell = arg;
    uint64_t one = 1;
    /* Fails only when the count is at its end, which is rung as well. */
    ssize_t written = write(bell->fd, &one, sizeof one);
    (void)written;
}

void bell_wait(struct bell *bell, int64_t timeout_ns)
{
    struct pollfd poll_fd = {.fd = bell->fd, .events = POLLIN};
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    if (ppoll(&poll_fd, 1, timeout_ns == INT64_MAX ? NULL : &timeout, NULL) > 0) {
        uint64_t count;
        ssize_t got = read(bell->fd, &count, sizeof count);
        (void)got;
    }
}
