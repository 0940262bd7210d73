/* Crash points in child processes: who is told dies at that passing and no other. */
#define TIDEGATE_CRASH_POINTS
#include "common/crash_point.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Passes "one" five times and "two" once each time; says on `fd` how often it came round. */
static void live(int fd)
{
    for (int i = 0; i < 5; i++) {
        CRASH_POINT("one");
        CRASH_POINT("two");
        if (write(fd, "x", 1) != 1)
            _exit(3);
    }
    _exit(0);
}

/* Runs live() with the environment given. Returns the wait status; the rounds in rounds_out; what stands on standard error in text_out. */
static int run(const char *at, const char *list, int *rounds_out, char text_out[512])
{
    int rounds[2], text[2], status;
    char buffer[16];
    assert_int_equal(pipe(rounds), 0);
    assert_int_equal(pipe(text), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)dup2(text[1], STDERR_FILENO);
        if (at)
            setenv("CRASH_POINT_AT", at, 1);
        else
            unsetenv("CRASH_POINT_AT");
        if (list)
            setenv("CRASH_POINT_LIST", list, 1);
        else
            unsetenv("CRASH_POINT_LIST");
        live(rounds[1]);
    }
    close(rounds[1]);
    close(text[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    ssize_t got = read(rounds[0], buffer, sizeof buffer);
    *rounds_out = got < 0 ? -1 : (int)got;
    got = read(text[0], text_out, 511);
    text_out[got < 0 ? 0 : got] = 0;
    close(rounds[0]);
    close(text[0]);
    return status;
}

static void dies_at_the_passing_it_is_told(void **state)
{
    (void)state;
    char text[512];
    int rounds;
    int status = run("one:3", NULL, &rounds, text);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(rounds, 2);
    status = run("two:1", NULL, &rounds, text);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(rounds, 0);
    const char *survived[] = {NULL, "one:6", "on:1", "one2:1", "three:1"};
    for (size_t i = 0; i < sizeof survived / sizeof *survived; i++) {
        status = run(survived[i], NULL, &rounds, text);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(rounds, 5);
        assert_string_equal(text, "");
    }
}

static void a_mistake_is_no_survival(void **state)
{
    (void)state;
    char text[512];
    int rounds;
    const char *wrong[] = {"one", "one:", "one:0", "one:x", "one:3x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = run(wrong[i], NULL, &rounds, text);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        assert_non_null(strstr(text, "must be NAME:COUNT"));
    }
}

static void lists_what_it_passes(void **state)
{
    (void)state;
    char text[512];
    int rounds;
    (void)run(NULL, "1", &rounds, text);
    assert_string_equal(text, "crash point one 1\ncrash point two 1\ncrash point one 2\ncrash point two 2\n"
                              "crash point one 4\ncrash point two 4\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dies_at_the_passing_it_is_told),
        cmocka_unit_test(a_mistake_is_no_survival),
        cmocka_unit_test(lists_what_it_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
