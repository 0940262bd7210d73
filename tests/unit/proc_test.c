#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/proc.h"

static void a_process_knows_itself(void **state)
{
    (void)state;
    struct proc_memory memory, by_pid;
    int64_t cpu_ns = -1, start = 0;
    uint64_t before = 0, after = 0;
    assert_int_equal(proc_read_memory(0, &memory), 0);
    assert_true(memory.resident_bytes > 100000);
    assert_true(memory.anonymous_bytes > 0);
    assert_true(memory.anonymous_bytes <= memory.resident_bytes);
    assert_true(memory.virtual_bytes >= memory.resident_bytes);
    assert_true(memory.thread_count >= 1);
    assert_int_equal(proc_read_memory(getpid(), &by_pid), 0);
    assert_int_equal(proc_read_cpu(0, &cpu_ns), 0);
    assert_true(cpu_ns >= 0);
    assert_int_equal(proc_read_start_time(0, &start), 0);
    assert_true(start <= clock_wall() + NS_PER_S);
    assert_true(start > clock_wall() - 100 * NS_PER_DAY);
    assert_int_equal(proc_read_fd_count(0, &before), 0);
    int fd = open("/dev/null", O_RDONLY);
    assert_int_equal(proc_read_fd_count(0, &after), 0);
    close(fd);
    assert_int_equal(after, before + 1);
    assert_true(proc_raise_fd_limit() >= before);
}

static void a_process_that_is_not_there(void **state)
{
    (void)state;
    struct proc_memory memory;
    int64_t value;
    uint64_t count;
    size_t thread_count;
    struct proc_thread thread;
    const pid_t nobody = 0x3fffffff; /* past the kernel's limit of pids */
    assert_int_equal(proc_read_memory(nobody, &memory), ERR_NOTFOUND);
    assert_int_equal(proc_read_cpu(nobody, &value), ERR_NOTFOUND);
    assert_int_equal(proc_read_start_time(nobody, &value), ERR_NOTFOUND);
    assert_int_equal(proc_read_fd_count(nobody, &count), ERR_NOTFOUND);
    assert_int_equal(proc_read_threads(nobody, &thread, 1, &thread_count), ERR_NOTFOUND);
}

static void *wait_for_release(void *arg)
{
    pthread_mutex_lock(arg);
    pthread_mutex_unlock(arg);
    return NULL;
}

static void threads_are_found_by_name(void **state)
{
    (void)state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    struct proc_thread threads[64];
    size_t count = 0;
    bool found = false;
    pthread_mutex_lock(&lock);
    assert_int_equal(pthread_create(&thread, NULL, wait_for_release, &lock), 0);
    pthread_setname_np(thread, "odd) name (");
    assert_int_equal(proc_read_threads(0, threads, 64, &count), 0);
    for (size_t i = 0; i < count; i++)
        found = found || strcmp(threads[i].name, "odd) name (") == 0;
    assert_true(found);
    assert_int_equal(proc_read_threads(0, threads, 1, &count), 0);
    assert_int_equal(count, 1);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_knows_itself),
        cmocka_unit_test(a_process_that_is_not_there),
        cmocka_unit_test(threads_are_found_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
