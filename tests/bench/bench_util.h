/* What the benchmark programs share: CPU and memory of another process from /proc, command-line numbers, the line about the machine.
 * Header-only; Linux. */
#ifndef TIDEGATE_TESTS_BENCH_BENCH_UTIL_H
#define TIDEGATE_TESTS_BENCH_BENCH_UTIL_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CPU time of all threads of a process so far, ns, from the scheduler's own count (threads that ended are missing: take the difference over
 * a span in which none ends). 0 when the process is gone. */
static inline uint64_t bench_process_cpu_ns(int pid)
{
    char path[300];
    uint64_t total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        uint64_t on_cpu = 0;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", pid, entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fscanf(file, "%lu", &on_cpu) == 1)
            total += on_cpu;
        fclose(file);
    }
    if (dir)
        closedir(dir);
    return total;
}

/* Anonymous resident memory of a process, bytes. */
static inline uint64_t bench_process_anonymous(int pid)
{
    char path[64], line[256];
    uint64_t kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lu", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib * 1024;
}

#endif
