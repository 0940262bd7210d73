#include "common/proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"

#define PROC_FILE_SIZE_MAX 8192

static void proc_path(char *path, size_t size, pid_t pid, const char *name)
{
    if (pid == 0)
        snprintf(path, size, "/proc/self/%s", name);
    else
        snprintf(path, size, "/proc/%ld/%s", (long)pid, name);
}

/* A whole small file as a string. */
static enum err proc_read_file(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? ERR_NOTFOUND : err_from_errno(errno);
    size_t used = 0;
    ssize_t got;
    while (used < size - 1 && (got = read(fd, text + used, size - 1 - used)) > 0)
        used += (size_t)got;
    close(fd);
    text[used] = '\0';
    return used > 0 ? ERR_OK : ERR_NOTFOUND;
}

/* The number behind "Name:" of a status file; 0 when the line is missing. */
static uint64_t status_value(const char *status, const char *name)
{
    const char *at = strstr(status, name);
    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

enum err proc_read_memory(pid_t pid, struct proc_memory *memory_out)
{
    char path[64];
    char text[PROC_FILE_SIZE_MAX];
    proc_path(path, sizeof path, pid, "status");
    enum err err = proc_read_file(path, text, sizeof text);
    if (err)
        return err;
    memory_out->resident_bytes = status_value(text, "\nVmRSS:") * 1024;
    memory_out->anonymous_bytes = status_value(text, "\nRssAnon:") * 1024;
    memory_out->virtual_bytes = status_value(text, "\nVmSize:") * 1024;
    memory_out->thread_count = status_value(text, "\nThreads:");
    return ERR_OK;
}

/* Fields of a stat line, numbered as proc(5) does; the name in parentheses may hold anything, so counting starts behind its last ')'. */
enum { STAT_UTIME = 14, STAT_STIME = 15, STAT_STARTTIME = 22 };

static uint64_t stat_field(const char *stat, int number)
{
    const char *at = strrchr(stat, ')');
    for (int field = 2; at && field < number; field++) {
        at = strchr(at, ' ');
        if (at)
            at++;
    }
    return at ? strtoull(at, NULL, 10) : 0;
}

static int64_t ticks_to_ns(uint64_t ticks) { return (int64_t)(ticks * (uint64_t)(NS_PER_S / sysconf(_SC_CLK_TCK))); }

enum err proc_read_cpu(pid_t pid, int64_t *cpu_ns_out)
{
    char path[64];
    char text[PROC_FILE_SIZE_MAX];
    proc_path(path, sizeof path, pid, "stat");
    enum err err = proc_read_file(path, text, sizeof text);
    if (!err)
        *cpu_ns_out = ticks_to_ns(stat_field(text, STAT_UTIME) + stat_field(text, STAT_STIME));
    return err;
}

enum err proc_read_fd_count(pid_t pid, uint64_t *fd_count_out)
{
    char path[64];
    proc_path(path, sizeof path, pid, "fd");
    DIR *directory = opendir(path);
    if (!directory)
        return errno == ENOENT ? ERR_NOTFOUND : err_from_errno(errno);
    uint64_t count = 0;
    while (readdir(directory))
        count++;
    closedir(directory);
    count -= count >= 2 ? 2 : count; /* . and .. */
    *fd_count_out = count - (pid == 0 && count > 0 ? 1 : 0);
    return ERR_OK;
}

enum err proc_read_start_time(pid_t pid, int64_t *wall_out)
{
    char path[64];
    char text[PROC_FILE_SIZE_MAX];
    proc_path(path, sizeof path, pid, "stat");
    enum err err = proc_read_file(path, text, sizeof text);
    if (err)
        return err;
    int64_t since_boot = ticks_to_ns(stat_field(text, STAT_STARTTIME));
    char uptime[128];
    err = proc_read_file("/proc/uptime", uptime, sizeof uptime);
    if (err)
        return err;
    int64_t up = (int64_t)(strtod(uptime, NULL) * (double)NS_PER_S);
    *wall_out = clock_wall() - (up - since_boot);
    return ERR_OK;
}

/* Fill one thread; false when it ended meanwhile. */
static int read_thread(pid_t pid, const char *tid, struct proc_thread *thread)
{
    char inner[64];
    char path[128];
    char text[PROC_FILE_SIZE_MAX];
    snprintf(inner, sizeof inner, "task/%.20s/stat", tid);
    proc_path(path, sizeof path, pid, inner);
    if (proc_read_file(path, text, sizeof text))
        return 0;
    const char *open = strchr(text, '(');
    const char *close = strrchr(text, ')');
    if (!open || !close || close < open)
        return 0;
    snprintf(thread->name, sizeof thread->name, "%.*s", (int)(close - open - 1), open + 1);
    thread->tid = (pid_t)strtol(tid, NULL, 10);
    thread->cpu_ns = ticks_to_ns(stat_field(text, STAT_UTIME) + stat_field(text, STAT_STIME));
    return 1;
}

enum err proc_read_threads(pid_t pid, struct proc_thread *threads, size_t capacity, size_t *count_out)
{
    char path[64];
    size_t count = 0;
    proc_path(path, sizeof path, pid, "task");
    DIR *directory = opendir(path);
    if (!directory)
        return errno == ENOENT ? ERR_NOTFOUND : err_from_errno(errno);
    struct dirent *entry;
    while (count < capacity && (entry = readdir(directory)))
        if (entry->d_name[0] != '.' && read_thread(pid, entry->d_name, &threads[count]))
            count++;
    closedir(directory);
    *count_out = count;
    return ERR_OK;
}

/* jemalloc's; not there with another allocator. */
extern int mallctl(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size) __attribute__((weak));

void proc_trim_memory(void)
{
    if (!mallctl)
        return;
    (void)mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
    (void)mallctl("arena.4096.purge", NULL, NULL, NULL, 0); /* 4096: MALLCTL_ARENAS_ALL */
}

void proc_decay_memory(void)
{
    if (mallctl)
        (void)mallctl("arena.4096.decay", NULL, NULL, NULL, 0);
}

/* As the kernel takes it since 3.14; the C library has had it for less long. */
struct sched_wish {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns; /* runtime: of the normal policies the length of a turn */
};

#define BULK_TURN_NS (5 * NS_PER_MS) /* longer than the usual one; not so long that who waits for its end suffers */

void proc_run_in_bulk(void)
{
    struct sched_wish wish = {.size = sizeof wish, .policy = SCHED_BATCH, .nice = getpriority(PRIO_PROCESS, 0), .runtime_ns = BULK_TURN_NS};
    (void)syscall(SYS_sched_setattr, 0, &wish, 0); /* where it is not allowed, all is as it was */
}

uint64_t proc_raise_fd_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        limit.rlim_cur = before;
    return limit.rlim_cur;
}
