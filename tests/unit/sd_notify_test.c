#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/sd_notify.h"

static void nobody_asked(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    assert_int_equal(sd_notify_send("READY=1"), 0);
}

static void send_and_receive(const char *path, size_t path_size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char got[100];
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    assert_true(fd >= 0);
    memcpy(address.sun_path, path, path_size);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    assert_int_equal(bind(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_size)), 0);
    setenv("NOTIFY_SOCKET", path, 1);
    assert_int_equal(sd_notify_send("READY=1\nSTATUS=serving"), 0);
    ssize_t size = recv(fd, got, sizeof got, MSG_DONTWAIT);
    assert_int_equal(size, 22);
    assert_memory_equal(got, "READY=1\nSTATUS=serving", 22);
    close(fd);
}

static void the_state_arrives(void **state)
{
    (void)state;
    char path[60];
    snprintf(path, sizeof path, "@tidegate-sd-notify-test-%ld", (long)getpid());
    send_and_receive(path, strlen(path));
    snprintf(path, sizeof path, "/tmp/sd_notify_test.%ld", (long)getpid());
    send_and_receive(path, strlen(path));
    unlink(path);
    assert_int_not_equal(sd_notify_send("READY=1"), 0);
    setenv("NOTIFY_SOCKET", "relative", 1);
    assert_int_equal(sd_notify_send("READY=1"), ERR_INVALID);
    unsetenv("NOTIFY_SOCKET");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_asked),
        cmocka_unit_test(the_state_arrives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
