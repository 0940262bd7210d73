/* What /proc says about a process: memory, descriptors, CPU, threads. For metrics, benchmarks and tests. Linux. Thread: any. */
#ifndef TIDEGATE_COMMON_PROC_H
#define TIDEGATE_COMMON_PROC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

struct proc_memory {
    uint64_t resident_bytes;
    uint64_t anonymous_bytes; /* RssAnon: what we allocated and touched */
    uint64_t virtual_bytes;
    uint64_t thread_count;
};

/* `pid` 0 is ourselves. Returns 0, or ERR_NOTFOUND when there is no such process. */
enum err proc_read_memory(pid_t pid, struct proc_memory *memory_out) must_check;
/* User and system CPU time of the whole process so far, ns (resolution: the kernel's tick). */
enum err proc_read_cpu(pid_t pid, int64_t *cpu_ns_out) must_check;
/* Open descriptors now. */
enum err proc_read_fd_count(pid_t pid, uint64_t *fd_count_out) must_check;
/* When the process started, ns since 1970. */
enum err proc_read_start_time(pid_t pid, int64_t *wall_out) must_check;

/* One thread: its name (as set with pthread_setname_np) and CPU time. */
struct proc_thread {
    char name[32];
    pid_t tid;
    int64_t cpu_ns;
};
/* Fill up to `capacity` threads; `*count_out` is how many were written. */
enum err proc_read_threads(pid_t pid, struct proc_thread *threads, size_t capacity, size_t *count_out) must_check;

/* Give memory that is free back to the system, where the allocator knows how: after a start that needed much in passing. */
void proc_trim_memory(void);
/* Give back what has been free for some seconds, of all threads: the allocator itself looks only while a thread allocates, so what a burst
 * left at one that is idle since would stay. To be called now and then; cheap. */
void proc_decay_memory(void);

/* The calling thread does work in bulk for which nobody waits: its share of the processors stays what it is, in long turns that any other
 * thread may cut short when it wakes up. Where the kernel knows no length of turns (before Linux 6.12), at least it does not interrupt
 * others when it wakes up. */
void proc_run_in_bulk(void);

/* Raise the soft limit of open descriptors to the hard one; returns the limit in effect. */
uint64_t proc_raise_fd_limit(void);

#endif
