/* For libraries that are preloaded into a program and stand before the C library's calls: reaching the real ones. */
#ifndef TIDEGATE_TESTS_LIB_PRELOAD_H
#define TIDEGATE_TESTS_LIB_PRELOAD_H

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

/* Declares real_NAME(parameters), looked up at the first call. */
#define REAL(result, name, ...)                                                                                                            \
    static result (*real_##name)(__VA_ARGS__);                                                                                             \
    if (!real_##name)                                                                                                                      \
    *(void **)&real_##name = dlsym(RTLD_NEXT, #name)

#define PRELOAD_OPEN(real_name, dir_fd, open_with)                                                                                         \
    mode_t mode = 0;                                                                                                                       \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                                                   \
        va_list list;                                                                                                                      \
        va_start(list, flags);                                                                                                             \
        mode = va_arg(list, mode_t);                                                                                                       \
        va_end(list);                                                                                                                      \
    }                                                                                                                                      \
    REAL(int, real_name, int, const char *, int, ...);                                                                                     \
    return open_with(real_##real_name, dir_fd, path, flags, mode)

/* open() and its kin, each as open_with(the real openat, dir_fd, path, flags, mode). */
#define PRELOAD_OPENS(open_with)                                                                                                           \
    int open(const char *path, int flags, ...) { PRELOAD_OPEN(openat, AT_FDCWD, open_with); }                                              \
    int open64(const char *path, int flags, ...) { PRELOAD_OPEN(openat64, AT_FDCWD, open_with); }                                          \
    int openat(int dir_fd, const char *path, int flags, ...) { PRELOAD_OPEN(openat, dir_fd, open_with); }                                  \
    int openat64(int dir_fd, const char *path, int flags, ...) { PRELOAD_OPEN(openat64, dir_fd, open_with); }

#endif
