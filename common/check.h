/* Assertions that stay on in production, and those that do not.
 *
 * CHECK(cond)   a bug of ours, never a peer's, a disk's or a configuration's fault: prints the place and aborts. A broker that stops is
 *               repaired; a broker that acknowledges wrongly is not.
 * DCHECK(cond)  the expensive ones, on in debug and sanitizer builds only.
 * UNREACHABLE() a branch that a correct program cannot take.
 *
 * Split conditions (`CHECK(a); CHECK(b);`), so that the message names the one that failed. Thread: any. */
#ifndef TIDEGATE_COMMON_CHECK_H
#define TIDEGATE_COMMON_CHECK_H

__attribute__((noreturn, cold, format(printf, 3, 4))) void check_failed(const char *file, int line, const char *format, ...);

#define CHECK(cond) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, "%s", #cond))
#define CHECK_MSG(cond, ...) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond ": " __VA_ARGS__))
#define UNREACHABLE() check_failed(__FILE__, __LINE__, "unreachable")

#ifdef TIDEGATE_DEBUG
#define DCHECK(cond) CHECK(cond)
#else
#define DCHECK(cond) ((void)sizeof(cond))
#endif

#endif
