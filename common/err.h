/* Operating errors: what the machine, a disk or a configuration does to us.
 *
 * Functions that can fail so return `enum err`: 0 is success, negative a reason. A peer's behaviour is not an error of ours but a verdict
 * (see broker/mqtt/packet.h), and a bug is a CHECK. Context (file, offset, client id) is added at the layer that knows it. Thread: any. */
#ifndef TIDEGATE_COMMON_ERR_H
#define TIDEGATE_COMMON_ERR_H

#define ERR_MAP(X)                                                                                                                         \
    X(NOMEM, -1, "out of memory")                                                                                                          \
    X(FULL, -2, "full: back-pressure, retry later")                                                                                        \
    X(IO, -3, "input/output error")                                                                                                        \
    X(NOSPACE, -4, "no space left on the device")                                                                                          \
    X(NOTFOUND, -5, "not found")                                                                                                           \
    X(EXISTS, -6, "exists already")                                                                                                        \
    X(INVALID, -7, "invalid value")                                                                                                        \
    X(CORRUPT, -8, "corrupt: checksum or structure does not hold")                                                                         \
    X(TORN, -9, "torn tail: the last write did not finish, which is normal")                                                               \
    X(LOCKED, -10, "locked by another process")                                                                                            \
    X(GAP, -11, "a range of the log is gone")                                                                                              \
    X(VERSION, -12, "written by a version that this program cannot read")                                                                  \
    X(PERMISSION, -13, "permission denied or read-only")                                                                                   \
    X(TOOLARGE, -14, "larger than the limit")                                                                                              \
    X(AGAIN, -15, "nothing yet, try again")                                                                                                \
    X(CLOSED, -16, "closed")

enum err {
    ERR_OK = 0,
#define X(name, value, text) ERR_##name = (value),
    ERR_MAP(X)
#undef X
};

#define must_check __attribute__((warn_unused_result))

/* The text of an error, never NULL, static storage. */
const char *err_text(enum err err);

/* The nearest error of an errno value (ENOSPC -> ERR_NOSPACE, EACCES -> ERR_PERMISSION, ... otherwise ERR_IO). */
enum err err_from_errno(int errnum);

/* Where an operation leaves its context: "what: where: why", cut at the end. Owned by the caller, no allocation. */
struct errmsg {
    char text[512];
};

/* Format a message into `msg` (may be NULL) and return `err`, so that `return err_set(...)` reads as one step. */
enum err err_set(struct errmsg *msg, enum err err, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
