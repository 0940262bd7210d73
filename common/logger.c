/* A line is formatted on the caller's stack and leaves in one write(2) to a descriptor opened with O_APPEND, which is what keeps lines of
 * several threads (and of two programs on one file) whole. The output (descriptor, format, capture) changes seldom and is read under a read
 * lock, so that a descriptor is not closed while somebody writes to it.
 *
 * Rate limit of a site: GCRA on one atomic word, the theoretical arrival time of the next line. A line is printed when that time lies at
 * most BURST - 1 intervals ahead of now; printing moves it one interval on. Sites that ever held a line back are pushed on a list once, for
 * logger_flush(). */
#include "common/logger.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/utf8.h"

#define SITE_INTERVAL_NS NS_PER_S

int logger_threshold = LOGGER_INFO;

static struct {
    pthread_rwlock_t lock;
    int fd;
    enum logger_format format;
    logger_capture_fn capture;
    void *capture_arg;
} output = {.lock = PTHREAD_RWLOCK_INITIALIZER, .fd = STDERR_FILENO};

static struct logger_site *listed_sites;
static struct logger_stats totals;

static void count(uint64_t *total, uint64_t more) { __atomic_fetch_add(total, more, __ATOMIC_RELAXED); }

/* ---- formatting -------------------------------------------------------------------------------------------------------------------- */

/* A line under construction; what does not fit before `end` is left out. Room for closing the line is kept behind `end`. */
struct line {
    char *at;
    char *end;
};

static void line_put(struct line *line, const char *text, size_t size)
{
    size_t room = line->at < line->end ? (size_t)(line->end - line->at) : 0;
    if (size > room)
        size = room;
    memcpy(line->at, text, size);
    line->at += size;
}

static void line_put_text(struct line *line, const char *text) { line_put(line, text, strlen(text)); }

__attribute__((format(printf, 2, 3))) static void line_printf(struct line *line, const char *format, ...)
{
    char text[128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    line_put_text(line, text);
}

/* An escape or a multi-byte character goes in whole or not at all: half of one would break JSON or UTF-8. */
static bool line_put_whole(struct line *line, const char *text, size_t size)
{
    if (line->at >= line->end || size > (size_t)(line->end - line->at))
        return false;
    line_put(line, text, size);
    return true;
}

/* Controls (C0, DEL, C1), line separators and bidirectional overrides: they forge lines or turn a terminal's text around. */
static bool is_dangerous(uint32_t code_point)
{
    return code_point < 0x20 || (code_point >= 0x7f && code_point <= 0x9f) || (code_point >= 0x200b && code_point <= 0x200f) ||
           (code_point >= 0x2028 && code_point <= 0x202e) || (code_point >= 0x2060 && code_point <= 0x2069) || code_point == 0xfeff ||
           (code_point >= 0xe0000 && code_point <= 0xe0fff);
}

/* One character of a quoted value. Returns the bytes used of the value, 0 when the line is full. */
static size_t line_put_escaped(struct line *line, enum logger_format format, const uint8_t *at, size_t size)
{
    char text[16];
    uint32_t code_point;
    size_t used = utf8_decode(&code_point, at, size);
    int length;
    if (used == 0) {
        length = format == LOGGER_JSON ? snprintf(text, sizeof text, "\\ufffd") : snprintf(text, sizeof text, "\\x%02x", at[0]);
        used = 1;
    } else if (code_point == '"' || code_point == '\\') {
        length = snprintf(text, sizeof text, "\\%c", (char)code_point);
    } else if (code_point == '\n') {
        length = snprintf(text, sizeof text, "\\n");
    } else if (code_point > 0xffff && is_dangerous(code_point)) {
        uint32_t offset = code_point - 0x10000;
        length = snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + (offset >> 10), 0xdc00 + (offset & 0x3ff));
    } else if (is_dangerous(code_point)) {
        length = snprintf(text, sizeof text, "\\u%04x", code_point);
    } else {
        memcpy(text, at, used);
        length = (int)used;
    }
    return line_put_whole(line, text, (size_t)length) ? used : 0;
}

static void line_put_quoted(struct line *line, enum logger_format format, struct span value)
{
    size_t size = value.size < LOGGER_VALUE_SIZE_MAX ? value.size : LOGGER_VALUE_SIZE_MAX;
    line->end--; /* for the closing quote */
    line_put_text(line, "\"");
    size_t offset = 0;
    while (offset < size) {
        size_t used = line_put_escaped(line, format, value.data + offset, value.size - offset);
        if (used == 0)
            break;
        offset += used;
    }
    if (offset < value.size)
        line_put_whole(line, "...", 3);
    line->end++;
    line_put_text(line, "\"");
}

/* Plain values need no quotes in the human format: visible ASCII without what would make `key=value` ambiguous. */
static bool is_plain(struct span value)
{
    if (value.size == 0 || value.size > LOGGER_VALUE_SIZE_MAX)
        return false;
    for (size_t i = 0; i < value.size; i++) {
        uint8_t byte = value.data[i];
        if (byte <= 0x20 || byte >= 0x7f || byte == '"' || byte == '\\' || byte == '=')
            return false;
    }
    return true;
}

static void line_put_string(struct line *line, enum logger_format format, struct span value)
{
    if (format == LOGGER_HUMAN && is_plain(value))
        line_put(line, (const char *)value.data, value.size);
    else
        line_put_quoted(line, format, value);
}

static void line_put_value(struct line *line, enum logger_format format, const struct logger_field *field)
{
    char text[CLOCK_TEXT_SIZE];
    switch (field->type) {
    case LOGGER_FIELD_NONE:
        break;
    case LOGGER_FIELD_SPAN:
        line_put_string(line, format, field->value.span);
        break;
    case LOGGER_FIELD_U64:
        line_printf(line, "%" PRIu64, field->value.u64);
        break;
    case LOGGER_FIELD_I64:
        line_printf(line, "%" PRId64, field->value.i64);
        break;
    case LOGGER_FIELD_F64:
        if (isfinite(field->value.f64))
            line_printf(line, "%.10g", field->value.f64);
        else
            line_put_string(line, format, SPAN_LITERAL("not-finite"));
        break;
    case LOGGER_FIELD_BOOL:
        line_put_text(line, field->value.flag ? "true" : "false");
        break;
    case LOGGER_FIELD_HEX:
        line_printf(line, format == LOGGER_JSON ? "\"%016" PRIx64 "\"" : "%016" PRIx64, field->value.u64);
        break;
    case LOGGER_FIELD_DURATION:
        if (format == LOGGER_JSON) {
            line_printf(line, "%.9g", (double)field->value.i64 / (double)NS_PER_S);
        } else {
            clock_format_duration(text, field->value.i64);
            line_put_text(line, text);
        }
        break;
    case LOGGER_FIELD_WALL:
        clock_format(text, field->value.i64, 9);
        line_put_string(line, format, span_of_string(text));
        break;
    }
}

static void line_put_field(struct line *line, enum logger_format format, const struct logger_field *field)
{
    /* A field that would be cut is left out whole, so that a cut line stays parseable. */
    struct line before = *line;
    if (format == LOGGER_JSON) {
        line_put_text(line, ",");
        line_put_quoted(line, format, span_of_string(field->key));
        line_put_text(line, ":");
    } else {
        line_put_text(line, " ");
        line_put_text(line, field->key);
        line_put_text(line, "=");
    }
    line_put_value(line, format, field);
    if (line->at == line->end)
        *line = before;
}

static const char *const level_names[] = {"debug", "info", "notice", "warning", "error", "off"};
static const char *const level_labels[] = {"DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "OFF"};

const char *logger_level_name(enum logger_level level) { return level_names[level]; }

size_t logger_format_line(char line_out[LOGGER_LINE_SIZE_MAX], enum logger_format format, int64_t wall, enum logger_level level,
                          const char *text, const struct logger_field *fields, size_t field_count, uint64_t suppressed)
{
    char time[CLOCK_TEXT_SIZE];
    struct line line = {line_out, line_out + LOGGER_LINE_SIZE_MAX - 64}; /* 64: the suppressed count, brace and newline */
    clock_format(time, wall, 3);
    if (format == LOGGER_JSON) {
        line_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"message\":", time, level_names[level]);
        line_put_quoted(&line, format, span_of_string(text));
    } else {
        line_printf(&line, "%s %s ", time, level_labels[level]);
        line_put_text(&line, text);
    }
    for (size_t i = 0; i < field_count; i++)
        if (fields[i].type != LOGGER_FIELD_NONE)
            line_put_field(&line, format, &fields[i]);
    line.end = line_out + LOGGER_LINE_SIZE_MAX;
    if (suppressed > 0)
        line_printf(&line, format == LOGGER_JSON ? ",\"suppressed\":%" PRIu64 : " (%" PRIu64 " similar suppressed)", suppressed);
    line_put_text(&line, format == LOGGER_JSON ? "}\n" : "\n");
    return (size_t)(line.at - line_out);
}

/* ---- output ------------------------------------------------------------------------------------------------------------------------- */

/* Whether the site may print now. */
static bool site_take(struct logger_site *site, mono_ns now)
{
    int64_t allowed_at = __atomic_load_n(&site->allowed_at, __ATOMIC_RELAXED);
    for (;;) {
        int64_t base = allowed_at > now ? allowed_at : now;
        if (base - now > (LOGGER_SITE_BURST - 1) * SITE_INTERVAL_NS)
            return false;
        if (__atomic_compare_exchange_n(&site->allowed_at, &allowed_at, base + SITE_INTERVAL_NS, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return true;
    }
}

static void site_hold_back(struct logger_site *site)
{
    count(&site->suppressed, 1);
    count(&totals.suppressed, 1);
    if (__atomic_exchange_n(&site->is_listed, 1, __ATOMIC_RELAXED))
        return;
    site->next = __atomic_load_n(&listed_sites, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&listed_sites, &site->next, site, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
}

/* One write for the whole line; what a signal or a full pipe cuts off is written after it. */
static bool write_line(int fd, const char *line, size_t size)
{
    while (size > 0) {
        ssize_t wrote = write(fd, line, size);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return false;
        line += wrote;
        size -= (size_t)wrote;
    }
    return true;
}

static void print_line(enum logger_level level, const char *text, const struct logger_field *fields, size_t field_count,
                       uint64_t suppressed)
{
    char line[LOGGER_LINE_SIZE_MAX];
    int errnum = errno; /* logging must not disturb the caller's error handling */
    pthread_rwlock_rdlock(&output.lock);
    size_t size = logger_format_line(line, output.format, clock_wall(), level, text, fields, field_count, suppressed);
    bool written = true;
    if (output.capture)
        output.capture(output.capture_arg, line, size);
    else
        written = write_line(output.fd, line, size);
    pthread_rwlock_unlock(&output.lock);
    count(written ? &totals.written : &totals.lost, 1);
    errno = errnum;
}

void logger_write(struct logger_site *site, const struct logger_field *fields, size_t field_count)
{
    if (!site_take(site, clock_mono())) {
        site_hold_back(site);
        return;
    }
    uint64_t suppressed = __atomic_exchange_n(&site->suppressed, 0, __ATOMIC_RELAXED);
    print_line(site->level, site->text, fields, field_count, suppressed);
}

void logger_flush(void)
{
    for (struct logger_site *site = __atomic_load_n(&listed_sites, __ATOMIC_ACQUIRE); site; site = site->next) {
        uint64_t suppressed = __atomic_exchange_n(&site->suppressed, 0, __ATOMIC_RELAXED);
        if (suppressed == 0)
            continue;
        const struct logger_field fields[] = {LOG_TEXT("file", site->file), LOG_I64("line", site->line)};
        print_line(site->level, site->text, fields, 2, suppressed);
    }
}

enum err logger_open(const char *path, enum logger_format format, enum logger_level threshold, struct errmsg *msg)
{
    int fd = STDERR_FILENO;
    if (path) {
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
        if (fd < 0) {
            int errnum = errno;
            return err_set(msg, err_from_errno(errnum), "%s: cannot open the log: %s", path, strerror(errnum));
        }
    }
    pthread_rwlock_wrlock(&output.lock);
    int fd_before = output.fd;
    output.fd = fd;
    output.format = format;
    pthread_rwlock_unlock(&output.lock);
    if (fd_before != STDERR_FILENO)
        close(fd_before);
    logger_set_threshold(threshold);
    return ERR_OK;
}

void logger_set_threshold(enum logger_level threshold) { __atomic_store_n(&logger_threshold, (int)threshold, __ATOMIC_RELAXED); }

int logger_fd(void) { return __atomic_load_n(&output.fd, __ATOMIC_RELAXED); }

void logger_close(void)
{
    logger_flush();
    pthread_rwlock_wrlock(&output.lock);
    int fd_before = output.fd;
    output.fd = STDERR_FILENO;
    pthread_rwlock_unlock(&output.lock);
    if (fd_before != STDERR_FILENO)
        close(fd_before);
}

void logger_capture(logger_capture_fn capture, void *arg)
{
    pthread_rwlock_wrlock(&output.lock);
    output.capture = capture;
    output.capture_arg = arg;
    pthread_rwlock_unlock(&output.lock);
}

struct logger_stats logger_stats(void)
{
    return (struct logger_stats){
        .written = __atomic_load_n(&totals.written, __ATOMIC_RELAXED),
        .suppressed = __atomic_load_n(&totals.suppressed, __ATOMIC_RELAXED),
        .lost = __atomic_load_n(&totals.lost, __ATOMIC_RELAXED),
    };
}
