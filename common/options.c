/* Reading collects assignments (spec, text, place) in the order found and checks each by itself; finishing decides per spec which
 * assignment counts and fills the struct. So a wrong value is reported even where a later one replaces it, and dump can name the place of
 * every value.
 *
 * Memory: strings, lists and listeners live in an arena of single allocations that goes with the struct options. */
#include "common/options.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/check.h"
#include "common/option_value.h"
#include "common/options_internal.h"
#include "common/utf8.h"

#define INCLUDE_DEPTH_MAX 4
#define ENVIRONMENT_PREFIX "TIDEGATE_"
#define PROBLEM_TEXT_SIZE 1024
#define KEY_SHOWN_MAX 64

/* ---- memory: configuration is read at start and on reload, where running out of memory is fatal -------------------------------------- */

static void *arena_take(struct options *options, size_t size)
{
    struct arena_chunk *chunk = calloc(1, sizeof *chunk + size);
    CHECK_MSG(chunk != NULL, "out of memory while reading the configuration");
    chunk->next = options->arena;
    options->arena = chunk;
    return chunk + 1;
}

static const char *arena_copy(struct options *options, const char *text, size_t size)
{
    char *copy = arena_take(options, size + 1);
    memcpy(copy, text, size);
    return copy;
}

static void *grow(void *array, size_t *capacity, size_t count, size_t element_size)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity ? *capacity * 2 : 16;
    void *grown = reallocarray(array, *capacity, element_size);
    CHECK_MSG(grown != NULL, "out of memory while reading the configuration");
    return grown;
}

/* ---- the table ----------------------------------------------------------------------------------------------------------------------- */

const struct option_spec *options_find_spec(const struct option_table *table, const char *name)
{
    for (size_t i = 0; i < table->spec_count; i++)
        if (strcmp(table->specs[i].name, name) == 0)
            return &table->specs[i];
    return NULL;
}

static const struct option_foreign *find_foreign(const struct option_table *table, const char *name)
{
    for (size_t i = 0; i < table->foreign_count; i++)
        if (strcmp(table->foreign[i].name, name) == 0)
            return &table->foreign[i];
    return NULL;
}

static bool has_field(const struct option_spec *spec) { return spec->type != OPTION_LISTENER && spec->type != OPTION_INCLUDE_DIR; }

static void check_spec(const struct option_table *table, const struct option_spec *spec)
{
    union option_value value;
    bool is_magic;
    struct errmsg msg = {""};
    CHECK_MSG(options_find_spec(table, spec->name) == spec, "option %s stands twice in the table", spec->name);
    CHECK_MSG(!find_foreign(table, spec->name), "option %s is ours and foreign", spec->name);
    CHECK_MSG(spec->type != OPTION_ENUM || (spec->enums && spec->enums[0].name), "option %s has no choices", spec->name);
    CHECK_MSG(spec->scope == OPTION_GLOBAL || table->listener_size > 0, "option %s needs listeners", spec->name);
    CHECK_MSG(spec->doc && spec->doc[0], "option %s is not documented", spec->name);
    if (!has_field(spec))
        return;
    CHECK_MSG(spec->offset < (spec->scope == OPTION_GLOBAL ? table->config_size : table->listener_size), "option %s lies outside",
              spec->name);
    if (spec->text)
        CHECK_MSG(option_value_parse(&value, &is_magic, spec, spec->text, &msg), "default of %s: %s", spec->name, msg.text);
}

struct options *options_new(const struct option_table *table)
{
    for (size_t i = 0; i < table->spec_count; i++)
        check_spec(table, &table->specs[i]);
    struct options *options = calloc(1, sizeof *options);
    if (!options)
        return NULL;
    options->table = table;
    options->main_file = "configuration";
    options->blocks = arena_take(options, (OPTIONS_LISTENER_COUNT_MAX + 1) * sizeof *options->blocks);
    options->blocks[0] = (struct listener_block){OPTION_FROM_DEFAULT, "default", 0};
    options->block_count = 1;
    return options;
}

void options_free(struct options *options)
{
    if (!options)
        return;
    while (options->arena) {
        struct arena_chunk *next = options->arena->next;
        free(options->arena);
        options->arena = next;
    }
    free(options->assignments);
    free(options->problems);
    free(options);
}

/* ---- problems ------------------------------------------------------------------------------------------------------------------------ */

/* Texts may quote what stood in a file; they go to terminals and logs. */
static void make_printable(char *text)
{
    size_t size = strlen(text);
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, (const uint8_t *)text + at, size - at);
        if (used == 0 || code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0)) {
            memset(text + at, '?', used ? used : 1);
        }
        at += used ? used : 1;
    }
}

__attribute__((format(printf, 6, 0))) static void add_problem(struct options *options, enum option_severity severity, const char *file,
                                                              int line, const char *key, const char *format, va_list args)
{
    char text[PROBLEM_TEXT_SIZE];
    char shown[KEY_SHOWN_MAX + 1];
    if (severity == OPTION_ERROR)
        options->error_count++;
    if (options->problem_count > OPTIONS_PROBLEM_COUNT_MAX)
        return;
    if (options->problem_count == OPTIONS_PROBLEM_COUNT_MAX) {
        snprintf(text, sizeof text, "more problems follow and are not shown");
        severity = OPTION_ERROR;
        key = "";
    } else {
        vsnprintf(text, sizeof text, format, args);
    }
    snprintf(shown, sizeof shown, "%s", key);
    make_printable(text);
    make_printable(shown);
    options->problems = grow(options->problems, &options->problem_capacity, options->problem_count, sizeof *options->problems);
    options->problems[options->problem_count++] = (struct option_problem){
        severity, file, line, arena_copy(options, shown, strlen(shown)), arena_copy(options, text, strlen(text)),
    };
}

/* Where the reader stands. */
struct place {
    enum option_source source;
    const char *file;
    int line;
};

__attribute__((format(printf, 5, 6))) static void problem_at(struct options *options, enum option_severity severity,
                                                             const struct place *place, const char *key, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_problem(options, severity, place->file, place->line, key, format, args);
    va_end(args);
}

void options_problem_item(struct options *options, enum option_severity severity, const struct option_item *item, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_problem(options, severity, item->file, item->line, item->key, format, args);
    va_end(args);
}

void options_problem(struct options *options, enum option_severity severity, const char *key, int listener_index, const char *format, ...)
{
    va_list args;
    struct option_origin origin = options_origin(options, key, listener_index);
    va_start(args, format);
    add_problem(options, severity, origin.file, origin.line, key, format, args);
    va_end(args);
}

size_t options_problem_count(const struct options *options, enum option_severity at_least)
{
    size_t count = 0;
    for (size_t i = 0; i < options->problem_count; i++)
        count += options->problems[i].severity >= at_least;
    return count;
}

const struct option_problem *options_problems(const struct options *options, size_t *count_out)
{
    *count_out = options->problem_count;
    return options->problems;
}

void options_print_problems(const struct options *options, struct buf *out)
{
    static const char *const marks[] = {"notice: ", "warning: ", ""};
    for (size_t i = 0; i < options->problem_count; i++) {
        const struct option_problem *problem = &options->problems[i];
        buf_put_string(out, problem->file);
        if (problem->line > 0)
            buf_printf(out, ":%d", problem->line);
        buf_printf(out, ": %s%s%s%s\n", marks[problem->severity], problem->key, problem->key[0] ? ": " : "", problem->text);
    }
}

/* ---- unknown keys ---------------------------------------------------------------------------------------------------------------------
 */

/* Edits (insert, delete, replace, swap neighbours) between two names; more than KEY_SHOWN_MAX letters count as far away. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t rows[3][KEY_SHOWN_MAX + 1];
    size_t a_size = strlen(a);
    size_t b_size = strlen(b);
    if (a_size > KEY_SHOWN_MAX || b_size > KEY_SHOWN_MAX)
        return SIZE_MAX;
    size_t *before = rows[0], *row = rows[1], *next = rows[2];
    for (size_t j = 0; j <= b_size; j++) {
        before[j] = 0;
        row[j] = j;
    }
    for (size_t i = 1; i <= a_size; i++) {
        next[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            size_t best = row[j - 1] + (a[i - 1] != b[j - 1]);
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = next[j - 1] + 1 < best ? next[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            next[j] = best;
        }
        size_t *spare = before;
        before = row;
        row = next;
        next = spare;
    }
    return row[b_size];
}

static const char *nearest_name(const struct option_table *table, const char *key)
{
    const char *nearest = NULL;
    size_t distance_best = strlen(key) / 3 + 1; /* one letter in three may be wrong */
    for (size_t i = 0; i < table->spec_count; i++) {
        size_t distance = edit_distance(key, table->specs[i].name);
        if (distance <= distance_best && (!nearest || distance < distance_best)) {
            nearest = table->specs[i].name;
            distance_best = distance;
        }
    }
    return nearest;
}

static void report_unknown(struct options *options, const struct place *place, enum option_severity severity, const char *key)
{
    const struct option_foreign *foreign = find_foreign(options->table, key);
    const char *nearest = nearest_name(options->table, key);
    if (foreign && foreign->harmless)
        problem_at(options, OPTION_WARNING, place, key, "is an option of mosquitto that Tidegate does not need, ignored: %s",
                   foreign->text);
    else if (foreign)
        problem_at(options, OPTION_ERROR, place, key, "is an option of mosquitto that Tidegate does not support: %s", foreign->text);
    else if (nearest)
        problem_at(options, severity, place, key, "unknown key (did you mean %s?)", nearest);
    else
        problem_at(options, severity, place, key, "unknown key (--help says how to list them all)");
}

/* ---- assignments ----------------------------------------------------------------------------------------------------------------------
 */

static bool is_listener_address(const struct options *options, const struct option_spec *spec)
{
    const struct option_table *table = options->table;
    return (table->listener_port_name && strcmp(spec->name, table->listener_port_name) == 0) ||
           (table->listener_address_name && strcmp(spec->name, table->listener_address_name) == 0);
}

static void add_assignment(struct options *options, const struct option_spec *spec, const char *value, int block, const struct place *place)
{
    options->assignments =
        grow(options->assignments, &options->assignment_capacity, options->assignment_count, sizeof *options->assignments);
    options->assignments[options->assignment_count++] = (struct assignment){spec, value, block, place->source, place->file, place->line};
}

static void warn_if_set_before(struct options *options, const struct option_spec *spec, int block, const struct place *place)
{
    for (size_t i = options->assignment_count; i > 0; i--) {
        const struct assignment *earlier = &options->assignments[i - 1];
        bool is_same_place = spec->scope == OPTION_GLOBAL || earlier->block == block;
        if (earlier->spec == spec && earlier->source == OPTION_FROM_FILE && is_same_place) {
            problem_at(options, OPTION_WARNING, place, spec->name, "set before at %s:%d, which no longer counts", earlier->file,
                       earlier->line);
            return;
        }
    }
}

/* Control characters and broken UTF-8 have no place in any value: they are a damaged file or an attempt on whoever prints it. */
static bool is_clean_value(struct span value)
{
    if (!utf8_is_valid(value))
        return false;
    for (size_t i = 0; i < value.size; i++)
        if ((value.data[i] < 0x20 && value.data[i] != '\t') || value.data[i] == 0x7f)
            return false;
    return true;
}

static void open_listener_block(struct options *options, const char *value, const struct place *place)
{
    const struct option_table *table = options->table;
    const struct option_spec *port = options_find_spec(table, table->listener_port_name);
    const struct option_spec *address = options_find_spec(table, table->listener_address_name);
    CHECK(port != NULL);
    CHECK(address != NULL);
    if (options->block_count > OPTIONS_LISTENER_COUNT_MAX) {
        problem_at(options, OPTION_ERROR, place, "listener", "too many listeners (expected at most %d)", OPTIONS_LISTENER_COUNT_MAX);
        return;
    }
    options->block_current = options->block_count;
    options->blocks[options->block_count++] = (struct listener_block){place->source, place->file, place->line};

    struct errmsg msg;
    union option_value number;
    bool is_magic;
    size_t port_size = strcspn(value, " \t");
    const char *port_text = arena_copy(options, value, port_size);
    const char *host = value + port_size + strspn(value + port_size, " \t");
    size_t host_size = strcspn(host, " \t");
    if (!option_value_parse(&number, &is_magic, port, port_text, &msg)) {
        problem_at(options, OPTION_ERROR, place, "listener", "%s", msg.text);
        return;
    }
    if (host[host_size] != '\0') {
        problem_at(options, OPTION_ERROR, place, "listener", "\"%.60s\" has more than two parts (expected PORT [ADDRESS])", value);
        return;
    }
    if (host[0] == '/') {
        problem_at(options, OPTION_ERROR, place, "listener", "Unix domain sockets are not supported (expected PORT [ADDRESS])");
        return;
    }
    add_assignment(options, port, port_text, options->block_current, place);
    if (host_size > 0)
        add_assignment(options, address, arena_copy(options, host, host_size), options->block_current, place);
}

static void include_directory(struct options *options, const char *path, const struct place *place);

/* The block that a value belongs to. `port` and `bind_address` speak of the default listener wherever they stand, as in mosquitto. */
static int block_of(const struct options *options, const struct option_spec *spec, const struct place *place)
{
    if (is_listener_address(options, spec))
        return BLOCK_DEFAULT;
    return place->source == OPTION_FROM_FILE ? options->block_current : BLOCK_ALL;
}

static void set_value(struct options *options, const struct option_spec *spec, const char *value, const struct place *place)
{
    struct errmsg msg;
    union option_value parsed;
    bool is_magic;
    if (!is_clean_value(span_of_string(value))) {
        problem_at(options, OPTION_ERROR, place, spec->name, "the value holds control characters or is not UTF-8 (expected plain text)");
        return;
    }
    if (value[0] == '\0' && !(spec->flags & OPTION_BLANK_ALLOWED)) {
        struct buf expected;
        buf_init(&expected, PROBLEM_TEXT_SIZE);
        option_value_print_expected(&expected, spec);
        option_value_print_magic(&expected, spec);
        problem_at(options, OPTION_ERROR, place, spec->name, "has no value (expected %s)", buf_string(&expected));
        buf_deinit(&expected);
        return;
    }
    if (spec->type == OPTION_LISTENER) {
        open_listener_block(options, value, place);
        return;
    }
    if (spec->type == OPTION_INCLUDE_DIR) {
        include_directory(options, value, place);
        return;
    }
    if (!option_value_parse(&parsed, &is_magic, spec, value, &msg)) {
        problem_at(options, OPTION_ERROR, place, spec->name, "%s", msg.text);
        return;
    }
    if (is_magic)
        problem_at(options, OPTION_NOTICE, place, spec->name, "%s means unlimited", value);
    int block = block_of(options, spec, place);
    if (spec->type != OPTION_STRINGS && place->source == OPTION_FROM_FILE)
        warn_if_set_before(options, spec, block, place);
    add_assignment(options, spec, arena_copy(options, value, strlen(value)), block, place);
}

/* ---- files ----------------------------------------------------------------------------------------------------------------------------
 */

static bool is_blank(uint8_t byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\v' || byte == '\f'; }

static struct span trim(struct span text)
{
    while (text.size > 0 && is_blank(text.data[0])) {
        text.data++;
        text.size--;
    }
    while (text.size > 0 && is_blank(text.data[text.size - 1]))
        text.size--;
    return text;
}

static void parse_line(struct options *options, struct span line, const struct place *place)
{
    line = trim(line);
    if (line.size == 0 || line.data[0] == '#')
        return;
    if (line.size > OPTIONS_LINE_SIZE_MAX) {
        problem_at(options, OPTION_ERROR, place, "", "the line has %zu bytes (expected at most %d)", line.size, OPTIONS_LINE_SIZE_MAX);
        return;
    }
    if (memchr(line.data, '\0', line.size)) {
        problem_at(options, OPTION_ERROR, place, "", "the line holds a NUL byte (expected plain text)");
        return;
    }
    size_t key_size = 0;
    while (key_size < line.size && !is_blank(line.data[key_size]))
        key_size++;
    struct span rest = trim(span_of(line.data + key_size, line.size - key_size));
    char *key = strndup((const char *)line.data, key_size);
    char *value = strndup((const char *)rest.data, rest.size);
    CHECK(key != NULL);
    CHECK(value != NULL);
    const struct option_spec *spec = options_find_spec(options->table, key);
    if (spec)
        set_value(options, spec, value, place);
    else
        report_unknown(options, place, OPTION_ERROR, key);
    free(key);
    free(value);
}

void options_parse_text(struct options *options, const char *file_name, struct span text)
{
    struct place place = {OPTION_FROM_FILE, arena_copy(options, file_name, strlen(file_name)), 0};
    CHECK(!options->is_finished);
    if (options->include_depth == 0)
        options->main_file = place.file;
    if (text.size >= 3 && memcmp(text.data, "\xef\xbb\xbf", 3) == 0) /* a byte order mark, as some editors leave it */
        text = span_of(text.data + 3, text.size - 3);
    while (text.size > 0) {
        const uint8_t *newline = memchr(text.data, '\n', text.size);
        size_t line_size = newline ? (size_t)(newline - text.data) : text.size;
        place.line++;
        parse_line(options, span_of(text.data, line_size), &place);
        line_size += newline ? 1 : 0;
        text = span_of(text.data + line_size, text.size - line_size);
    }
}

/* The whole file into `content`. */
static enum err read_file(const char *path, struct buf *content, struct errmsg *msg)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a fifo must not hold us up */
    if (fd < 0) {
        int errnum = errno;
        return err_set(msg, err_from_errno(errnum), "cannot open: %s", strerror(errnum));
    }
    ssize_t got = 0;
    uint8_t *at;
    while ((at = buf_reserve(content, 65536)) && (got = read(fd, at, 65536)) > 0)
        buf_commit(content, (size_t)got);
    int errnum = errno;
    close(fd);
    if (content->err)
        return err_set(msg, content->err, "is larger than %d bytes", OPTIONS_FILE_SIZE_MAX);
    if (got < 0)
        return err_set(msg, err_from_errno(errnum), "cannot read: %s", strerror(errnum));
    return ERR_OK;
}

void options_parse_file(struct options *options, const char *path)
{
    struct buf content;
    struct errmsg msg;
    bool could_include = options->may_include;
    buf_init(&content, OPTIONS_FILE_SIZE_MAX + 65536); /* the last read needs its room too */
    if (read_file(path, &content, &msg)) {
        struct place place = {OPTION_FROM_FILE, arena_copy(options, path, strlen(path)), 0};
        problem_at(options, OPTION_ERROR, &place, "", "%s", msg.text);
    } else {
        options->may_include = true;
        options_parse_text(options, path, buf_span(&content));
        options->may_include = could_include;
    }
    buf_deinit(&content);
}

static int is_conf_file(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return entry->d_name[0] != '.' && length > 5 && strcmp(entry->d_name + length - 5, ".conf") == 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void include_directory(struct options *options, const char *path, const struct place *place)
{
    struct dirent **entries;
    if (!options->may_include || place->source != OPTION_FROM_FILE) {
        problem_at(options, OPTION_ERROR, place, "include_dir", "is possible in a file only");
        return;
    }
    if (options->include_depth >= INCLUDE_DEPTH_MAX) {
        problem_at(options, OPTION_ERROR, place, "include_dir", "nested too deep (expected at most %d levels)", INCLUDE_DEPTH_MAX);
        return;
    }
    int count = scandir(path, &entries, is_conf_file, compare_names);
    if (count < 0) {
        problem_at(options, OPTION_ERROR, place, "include_dir", "%s: %s", path, strerror(errno));
        return;
    }
    options->include_depth++;
    for (int i = 0; i < count; i++) {
        char *inner;
        CHECK(asprintf(&inner, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", entries[i]->d_name) >= 0);
        options_parse_file(options, inner);
        free(inner);
        free(entries[i]);
    }
    free(entries);
    options->include_depth--;
}

/* ---- environment and command line -----------------------------------------------------------------------------------------------------
 */

/* `listener` from outside replaces the listeners of the files, with what was set in their blocks. */
static void drop_file_listeners(struct options *options, const struct place *place)
{
    size_t kept = 0;
    if (options->block_count > 1)
        problem_at(options, OPTION_NOTICE, place, "listener", "replaces the %d listeners of the files", options->block_count - 1);
    for (size_t i = 0; i < options->assignment_count; i++) {
        const struct assignment *assignment = &options->assignments[i];
        if (assignment->spec->scope == OPTION_GLOBAL || assignment->block <= BLOCK_DEFAULT)
            options->assignments[kept++] = *assignment;
    }
    options->assignment_count = kept;
    options->block_count = 1;
    options->block_current = 0;
}

static void set_from_outside(struct options *options, const struct option_spec *spec, const char *text, const struct place *place)
{
    if (spec->type == OPTION_LISTENER)
        drop_file_listeners(options, place);
    if (spec->type != OPTION_STRINGS && spec->type != OPTION_LISTENER) {
        struct span value = trim(span_of_string(text));
        set_value(options, spec, arena_copy(options, (const char *)value.data, value.size), place);
        return;
    }
    const char *separator = strchr(text, '\n') ? "\n" : ";";
    bool is_empty = true;
    while (*text) {
        size_t size = strcspn(text, separator);
        struct span part = trim(span_of(text, size));
        if (part.size > 0) {
            set_value(options, spec, arena_copy(options, (const char *)part.data, part.size), place);
            is_empty = false;
        }
        text += size + (text[size] ? 1 : 0);
    }
    if (is_empty && spec->type == OPTION_STRINGS)
        add_assignment(options, spec, NULL, BLOCK_ALL, place);
}

/* The key of TIDEGATE_MAX_PACKET_SIZE=...; NULL when the variable is not of that form. Freed by the caller. */
static char *environment_key(const char *variable, size_t name_size)
{
    size_t prefix_size = sizeof ENVIRONMENT_PREFIX - 1;
    if (name_size <= prefix_size || strncmp(variable, ENVIRONMENT_PREFIX, prefix_size) != 0)
        return NULL;
    char *key = strndup(variable + prefix_size, name_size - prefix_size);
    CHECK(key != NULL);
    for (char *at = key; *at; at++) {
        if (*at >= 'a' && *at <= 'z') {
            free(key);
            return NULL;
        }
        if (*at >= 'A' && *at <= 'Z')
            *at = (char)(*at - 'A' + 'a');
    }
    return key;
}

void options_parse_environment(struct options *options, char *const *environment)
{
    struct place place = {OPTION_FROM_ENVIRONMENT, "environment", 0};
    CHECK(!options->is_finished);
    for (; *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        char *key = equals ? environment_key(*environment, (size_t)(equals - *environment)) : NULL;
        if (!key)
            continue;
        const struct option_spec *spec = options_find_spec(options->table, key);
        if (spec)
            set_from_outside(options, spec, equals + 1, &place);
        else
            report_unknown(options, &place, OPTION_WARNING, key);
        free(key);
    }
}

void options_set(struct options *options, const char *key, const char *value)
{
    struct place place = {OPTION_FROM_COMMAND_LINE, "command line", 0};
    CHECK(!options->is_finished);
    const struct option_spec *spec = options_find_spec(options->table, key);
    if (spec)
        set_from_outside(options, spec, value, &place);
    else
        report_unknown(options, &place, OPTION_ERROR, key);
}

/* ---- finishing ------------------------------------------------------------------------------------------------------------------------
 */

bool options_is_shared(const struct options *options, const struct option_spec *spec)
{
    return spec->scope == OPTION_GLOBAL || (spec->scope == OPTION_SECURITY && !options->per_listener);
}

static bool applies_to(const struct options *options, const struct assignment *assignment, const struct option_spec *spec, int block)
{
    return options_is_shared(options, spec) || assignment->block == BLOCK_ALL || assignment->block == block;
}

const struct assignment *options_resolve(const struct options *options, const struct option_spec *spec, int block)
{
    const struct assignment *best = NULL;
    for (size_t i = 0; i < options->assignment_count; i++) {
        const struct assignment *assignment = &options->assignments[i];
        if (assignment->spec == spec && applies_to(options, assignment, spec, block) && (!best || assignment->source >= best->source))
            best = assignment;
    }
    return best;
}

/* The strongest source that says something about a list's key: what it says replaces what weaker ones say. */
static enum option_source list_source(const struct options *options, const struct option_spec *spec, int block)
{
    const struct assignment *best = options_resolve(options, spec, block);
    return best ? best->source : OPTION_FROM_DEFAULT;
}

static bool is_list_of(const struct option_spec *spec, const struct option_spec *first)
{
    return spec->type == OPTION_STRINGS && spec->offset == first->offset &&
           (spec->scope == OPTION_GLOBAL) == (first->scope == OPTION_GLOBAL);
}

static void fill_list(struct options *options, void *base, const struct option_spec *first, int block)
{
    const struct option_table *table = options->table;
    struct option_item *items = arena_take(options, (options->assignment_count + table->spec_count) * sizeof *items);
    size_t count = 0;
    for (size_t i = 0; i < table->spec_count; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (is_list_of(spec, first) && spec->text && list_source(options, spec, block) == OPTION_FROM_DEFAULT)
            items[count++] = (struct option_item){spec->name, spec->text, "default", 0};
    }
    for (size_t i = 0; i < options->assignment_count; i++) {
        const struct assignment *assignment = &options->assignments[i];
        if (!is_list_of(assignment->spec, first) || !assignment->value || !applies_to(options, assignment, assignment->spec, block))
            continue;
        if (assignment->source == list_source(options, assignment->spec, block))
            items[count++] = (struct option_item){assignment->spec->name, assignment->value, assignment->file, assignment->line};
    }
    memcpy((char *)base + first->offset, &(struct option_list){items, count}, sizeof(struct option_list));
}

static void fill_value(struct options *options, void *base, const struct option_spec *spec, int block)
{
    const struct assignment *assignment = options_resolve(options, spec, block);
    const char *text = assignment ? assignment->value : spec->text;
    union option_value value;
    struct errmsg msg;
    bool is_magic;
    if (text) {
        CHECK(option_value_parse(&value, &is_magic, spec, text, &msg));
        option_value_store(base, spec, value);
    } else if (spec->type == OPTION_ENUM) {
        value.choice = spec->enums[0].value;
        option_value_store(base, spec, value);
    }
    if (!text && (spec->flags & OPTION_REQUIRED)) {
        const struct listener_block *listener = &options->blocks[block];
        struct place place = {OPTION_FROM_FILE, options->main_file, 0};
        if (spec->scope != OPTION_GLOBAL && block > 0)
            place = (struct place){listener->source, listener->file, listener->line};
        problem_at(options, OPTION_ERROR, &place, spec->name, "must be set");
    }
}

/* Fill all fields of the config struct, or of one listener's. */
static void fill_struct(struct options *options, void *base, bool is_listener, int block)
{
    const struct option_table *table = options->table;
    for (size_t i = 0; i < table->spec_count; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (!has_field(spec) || (spec->scope != OPTION_GLOBAL) != is_listener)
            continue;
        if (spec->type == OPTION_STRINGS)
            fill_list(options, base, spec, block);
        else
            fill_value(options, base, spec, block);
    }
}

/* The first value that asks for the default listener; NULL when none does. */
static const struct assignment *find_default_listener(const struct options *options)
{
    for (size_t i = 0; i < options->assignment_count; i++) {
        const struct assignment *assignment = &options->assignments[i];
        if (assignment->block == BLOCK_DEFAULT && !options_is_shared(options, assignment->spec))
            return assignment;
    }
    return NULL;
}

static void fill_listeners(struct options *options, void *config)
{
    const struct option_table *table = options->table;
    const struct assignment *asking = find_default_listener(options);
    bool has_default = asking || options->block_count == 1;
    if (asking && options->block_count > 1) {
        struct place place = {asking->source, asking->file, asking->line};
        problem_at(options, OPTION_NOTICE, &place, asking->spec->name,
                   "stands outside of the `listener` blocks and therefore opens the default listener too");
    }
    size_t count = (size_t)options->block_count - (has_default ? 0 : 1);
    char *items = arena_take(options, count * table->listener_size);
    options->listener_blocks = arena_take(options, count * sizeof *options->listener_blocks);
    options->listener_count = (int)count;
    for (size_t i = 0; i < count; i++) {
        options->listener_blocks[i] = (int)i + (has_default ? 0 : 1);
        fill_struct(options, items + i * table->listener_size, true, options->listener_blocks[i]);
    }
    memcpy((char *)config + table->listeners_offset, &(struct option_listeners){items, count}, sizeof(struct option_listeners));
}

/* The copy for dump and diff has listeners of its own, since the program may change its. */
static void keep_copy(struct options *options, const void *config)
{
    const struct option_table *table = options->table;
    options->config = arena_take(options, table->config_size);
    memcpy(options->config, config, table->config_size);
    if (table->listener_size == 0)
        return;
    struct option_listeners listeners;
    memcpy(&listeners, (const char *)config + table->listeners_offset, sizeof listeners);
    void *items = arena_take(options, listeners.count * table->listener_size);
    memcpy(items, listeners.items, listeners.count * table->listener_size);
    listeners.items = items;
    memcpy((char *)options->config + table->listeners_offset, &listeners, sizeof listeners);
}

enum err options_finish(struct options *options, void *config)
{
    const struct option_table *table = options->table;
    CHECK(!options->is_finished);
    memset(config, 0, table->config_size);
    if (table->per_listener_name) {
        const struct option_spec *spec = options_find_spec(table, table->per_listener_name);
        const struct assignment *assignment = options_resolve(options, spec, BLOCK_DEFAULT);
        const char *text = assignment ? assignment->value : spec->text;
        options->per_listener = text && strcmp(text, "true") == 0;
    }
    fill_struct(options, config, false, BLOCK_DEFAULT);
    if (table->listener_size > 0)
        fill_listeners(options, config);
    options->is_finished = true;
    if (options->error_count == 0 && table->validate)
        table->validate(options, config);
    keep_copy(options, config);
    return options->error_count == 0 ? ERR_OK : ERR_INVALID;
}

enum err options_load(struct options *options, const char *path, char *const *environment, void *config)
{
    if (path)
        options_parse_file(options, path);
    if (environment)
        options_parse_environment(options, environment);
    return options_finish(options, config);
}

/* ---- asking ---------------------------------------------------------------------------------------------------------------------------
 */

struct option_origin options_origin(const struct options *options, const char *key, int listener_index)
{
    const struct option_spec *spec = options_find_spec(options->table, key);
    CHECK_MSG(spec != NULL, "%s is no option", key);
    CHECK(options->is_finished);
    CHECK(listener_index < options->listener_count);
    int block = listener_index >= 0 ? options->listener_blocks[listener_index] : BLOCK_DEFAULT;
    const struct assignment *assignment = options_resolve(options, spec, block);
    if (assignment)
        return (struct option_origin){assignment->source, assignment->file, assignment->line};
    const struct listener_block *listener = &options->blocks[block];
    if (listener_index >= 0 && block != BLOCK_DEFAULT)
        return (struct option_origin){OPTION_FROM_DEFAULT, listener->file, listener->line};
    return (struct option_origin){OPTION_FROM_DEFAULT, "default", 0};
}

const void *options_base(const struct options *options, const struct option_spec *spec, int listener_index)
{
    if (spec->scope == OPTION_GLOBAL)
        return options->config;
    struct option_listeners listeners;
    memcpy(&listeners, (const char *)options->config + options->table->listeners_offset, sizeof listeners);
    CHECK(listener_index >= 0);
    CHECK((size_t)listener_index < listeners.count);
    return (const char *)listeners.items + (size_t)listener_index * options->table->listener_size;
}
