/* Log lines for people and machines (the durable log of records is another noun: log_*.h).
 *
 *     LOG_INFO("listening", LOG_TEXT("address", address), LOG_U64("port", port));
 *     LOG_WARNING("bad packet", LOG_STR("client", client_id), LOG_ERR("error", err));
 *
 * prints in the human format
 *     2026-11-21T06:09:12.123Z INFO listening address=127.0.0.1 port=1883
 * and in JSON
 *     {"time":"2026-11-21T06:09:12.123Z","level":"info","message":"listening","address":"127.0.0.1","port":1883}
 *
 * The text is a constant; what varies goes into fields. Field values may come from anybody: in the human format a value that is not plain
 * is quoted, and in both formats controls, quotes and invalid UTF-8 are escaped, so that no peer can forge a line or drive a terminal. Keys
 * are our own identifiers. A value is cut after LOGGER_VALUE_SIZE_MAX bytes, a line after LOGGER_LINE_SIZE_MAX.
 *
 * One write(2) a line; lines of several threads do not mix. Each call site may print a burst of LOGGER_SITE_BURST lines and then one a
 * second; what is held back is counted and told with the next line of that site ("suppressed":N), or by logger_flush(). A level below the
 * threshold costs one relaxed load, and its fields are not evaluated.
 *
 * Pure code may log: this header has no system call in it, and logger_capture() gives the lines to a test. Thread: any. */
#ifndef TIDEGATE_COMMON_LOGGER_H
#define TIDEGATE_COMMON_LOGGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

enum logger_level { LOGGER_DEBUG, LOGGER_INFO, LOGGER_NOTICE, LOGGER_WARNING, LOGGER_ERROR, LOGGER_OFF };
enum logger_format { LOGGER_HUMAN, LOGGER_JSON };

#define LOGGER_VALUE_SIZE_MAX 1024
#define LOGGER_LINE_SIZE_MAX 8192
#define LOGGER_FIELD_COUNT_MAX 24
#define LOGGER_SITE_BURST 20

enum logger_field_type {
    LOGGER_FIELD_NONE,
    LOGGER_FIELD_SPAN,
    LOGGER_FIELD_U64,
    LOGGER_FIELD_I64,
    LOGGER_FIELD_F64,
    LOGGER_FIELD_BOOL,
    LOGGER_FIELD_HEX,
    LOGGER_FIELD_DURATION,
    LOGGER_FIELD_WALL
};

struct logger_field {
    const char *key;
    enum logger_field_type type;
    union {
        struct span span;
        uint64_t u64;
        int64_t i64;
        double f64;
        bool flag;
    } value;
};

/* Field constructors; the value is borrowed until the macro returns. */
static inline struct logger_field LOG_STR(const char *key, struct span span) {
    return (struct logger_field){key, LOGGER_FIELD_SPAN, {.span = span}};
}
/* A C string; NULL prints as empty. */
static inline struct logger_field
LOG_TEXT(const char *key, const char *text) {
    return LOG_STR(key, text ? span_of_string(text) : span_of(NULL, 0));
} static inline struct logger_field LOG_U64(const char *key, uint64_t value) {
    return (struct logger_field){key, LOGGER_FIELD_U64, {.u64 = value}};
} static inline struct logger_field LOG_I64(const char *key, int64_t value) {
    return (struct logger_field){key, LOGGER_FIELD_I64, {.i64 = value}};
} static inline struct logger_field LOG_F64(const char *key, double value) {
    return (struct logger_field){key, LOGGER_FIELD_F64, {.f64 = value}};
} static inline struct logger_field LOG_BOOL(const char *key, bool value) {
    return (struct logger_field){key, LOGGER_FIELD_BOOL, {.flag = value}};
}
/* As 16 hexadecimal digits: broker ids, correlation ids. */
static inline struct logger_field
LOG_HEX(const char *key, uint64_t value) {
    return (struct logger_field){key, LOGGER_FIELD_HEX, {.u64 = value}};
}
/* ns; as "15ms" in the human format, as seconds in JSON. */
static inline struct logger_field
LOG_DURATION(const char *key, int64_t duration_ns) {
    return (struct logger_field){key, LOGGER_FIELD_DURATION, {.i64 = duration_ns}};
}
/* wall_ns as RFC 3339. */
static inline struct logger_field
LOG_WALL(const char *key, int64_t wall) {
    return (struct logger_field){key, LOGGER_FIELD_WALL, {.i64 = wall}};
}
/* The text of an enum err. */
static inline struct logger_field
LOG_ERR(const char *key, enum err err) {
    return LOG_TEXT(key, err_text(err));
}

/* A place in the source that logs. Made by the macros; atomics inside. */
struct logger_site {
    const char *file;
    int line;
    enum logger_level level;
    const char *text;
    int64_t allowed_at;       /* GCRA: the theoretical arrival time of the next line, mono_ns */
    uint64_t suppressed;      /* lines held back since the last one printed */
    struct logger_site *next; /* list of the sites that ever held back; written once, by logger.c */
    int is_listed;
};

/* The level below which nothing is printed; read with logger_is_enabled(). */
extern int logger_threshold;
static inline bool logger_is_enabled(enum logger_level level) { return (int)level >= __atomic_load_n(&logger_threshold, __ATOMIC_RELAXED); }

/* Print one line of a site; `fields` are borrowed. Called by the macros; fields of type NONE are skipped. Never fails, may block in
 * write(2). */
void logger_write(struct logger_site *site, const struct logger_field *fields, size_t field_count);

#define LOGGER_AT(level_, text_, ...)                                                                                                      \
    do {                                                                                                                                   \
        if (logger_is_enabled(level_)) {                                                                                                   \
            static struct logger_site logger_site_ = {__FILE__, __LINE__, (level_), (text_), 0, 0, NULL, 0};                               \
            const struct logger_field logger_fields_[] = {{NULL, LOGGER_FIELD_NONE, {.u64 = 0}}, ##__VA_ARGS__};                           \
            logger_write(&logger_site_, logger_fields_, sizeof logger_fields_ / sizeof logger_fields_[0]);                                 \
        }                                                                                                                                  \
    } while (0)

#define LOG_DEBUG(text, ...) LOGGER_AT(LOGGER_DEBUG, text, ##__VA_ARGS__)
#define LOG_INFO(text, ...) LOGGER_AT(LOGGER_INFO, text, ##__VA_ARGS__)
#define LOG_NOTICE(text, ...) LOGGER_AT(LOGGER_NOTICE, text, ##__VA_ARGS__)
#define LOG_WARNING(text, ...) LOGGER_AT(LOGGER_WARNING, text, ##__VA_ARGS__)
#define LOG_ERROR(text, ...) LOGGER_AT(LOGGER_ERROR, text, ##__VA_ARGS__)

/* Send lines to `path` (created 0640, appended to; NULL means stderr), in `format`, from `threshold` on. Before the first call: stderr,
 * human, INFO. May be called again at any time (reload, log rotation): the new file is opened before the old one is closed. Returns 0 or
 * why the file cannot be opened, and leaves everything as it was then. Thread: any. */
enum err logger_open(const char *path, enum logger_format format, enum logger_level threshold, struct errmsg *msg) must_check;
/* Only the threshold. */
void logger_set_threshold(enum logger_level threshold);

/* Tell what sites still hold back, one line each. Call it about every ten seconds and at the end. */
void logger_flush(void);
/* Where lines go, for a signal handler that may call nothing else here. */
int logger_fd(void);
/* Flush, close the file, back to stderr. */
void logger_close(void);

/* Give whole lines (with their newline) to `capture` instead of writing them; NULL ends it. For tests. `line` is borrowed until it returns.
 */
typedef void (*logger_capture_fn)(void *arg, const char *line, size_t line_size);
void logger_capture(logger_capture_fn capture, void *arg);

/* Lines written, held back, and lost because write(2) failed, since the start. Thread: any. */
struct logger_stats {
    uint64_t written;
    uint64_t suppressed;
    uint64_t lost;
};
struct logger_stats logger_stats(void);

/* Format one line into `line_out`; returns its size with the newline, at most LOGGER_LINE_SIZE_MAX. `wall` is ns since 1970. Pure. */
size_t logger_format_line(char line_out[LOGGER_LINE_SIZE_MAX], enum logger_format format, int64_t wall, enum logger_level level,
                          const char *text, const struct logger_field *fields, size_t field_count, uint64_t suppressed);

/* "debug" "info" "notice" "warning" "error" "off". */
const char *logger_level_name(enum logger_level level);

#endif
