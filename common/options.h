/* The option table and its engine: one table per program drives parser, defaults, checks, reload classes, --help, dump and the reference
 * document.
 *
 * File format: one `key value` a line; a line whose first non-blank character is '#' is a comment ('#' elsewhere belongs to the value:
 * topic filters have it). Blanks and tabs around key and value, CR before LF and a missing last newline do not matter; a NUL byte or a line
 * past OPTIONS_LINE_SIZE_MAX is an error. The last value of a key wins, unless it is repeatable. `listener PORT [ADDRESS]` opens a block:
 * options of scope LISTENER after it belong to that listener; those before the first `listener` line belong to the default listener, which
 * exists if one of them is set or if there is no `listener` line. Every key can be overridden by the environment, TIDEGATE_<KEY IN UPPER
 * CASE>: for a listener's option it holds for all listeners; repeatable ones take values separated by newlines, or by ';' where there is no
 * newline, and replace what the file says for that key.
 *
 *     struct demo_config { int64_t max_packet_size; bool allow_anonymous; struct option_list rules; };
 *     static const struct option_spec demo_specs[] = {
 *         {.name = "max_packet_size", .type = OPTION_SIZE, .offset = offsetof(struct demo_config, max_packet_size), .text = "16MiB",
 *          .min = 1024, .max = 256 << 20, .reload = OPTION_RELOAD_NEW, .doc = "Largest packet accepted."},
 *         ...
 *     };
 *     static const struct option_table demo_table = {.program = "demo", .specs = demo_specs, .spec_count = ..., .config_size =
 * sizeof(struct demo_config)};
 *
 *     struct options *options = options_new(&demo_table);
 *     struct demo_config config;
 *     if (options_load(options, path, environ, &config) != 0)
 *         options_print_problems(options, &text);   // "broker.conf:7: max_packet_sise: unknown key (did you mean max_packet_size?)"
 *
 * All problems of a file are collected before it fails. Everything the config points to (strings, lists, listeners) is owned by the struct
 * options and lives as long. Only options_load() and options_parse_file() touch the system; the rest is pure. One thread. */
#ifndef TIDEGATE_COMMON_OPTIONS_H
#define TIDEGATE_COMMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/bytes.h"
#include "common/err.h"
#include "common/option_spec.h"

#define OPTIONS_LINE_SIZE_MAX 65536
#define OPTIONS_FILE_SIZE_MAX (4 << 20)
#define OPTIONS_PROBLEM_COUNT_MAX 1000
#define OPTIONS_LISTENER_COUNT_MAX 256

/* A mosquitto option that is not ours: an error with what to do instead, or a warning where ignoring it is harmless. */
struct option_foreign {
    const char *name;
    bool harmless;
    const char *text; /* after "is an option of mosquitto that Tidegate does not support: " */
};

struct options;

struct option_table {
    const char *program; /* "tidegate-broker": in --help and the reference */
    const struct option_spec *specs;
    size_t spec_count;
    const struct option_foreign *foreign;
    size_t foreign_count;
    size_t config_size;
    /* Only for a program with listeners: */
    size_t listener_size;              /* of the listener struct; 0: the program has no listeners */
    size_t listeners_offset;           /* of a struct option_listeners in the config struct */
    const char *listener_port_name;    /* the LISTENER-scope INT spec that `listener PORT` sets ("port") */
    const char *listener_address_name; /* the LISTENER-scope STRING spec that `listener PORT ADDRESS` sets ("bind_address") */
    const char *per_listener_name;     /* the GLOBAL BOOL spec that frees the SECURITY ones ("per_listener_settings"), or NULL */
    /* Checks across options; reports by options_problem(). May be NULL. Runs when all single values are right. */
    void (*validate)(struct options *options, void *config);
};

/* A value of a repeatable option. */
struct option_item {
    const char *key; /* the spec's name: which of the specs that share the list */
    const char *value;
    const char *file; /* for messages: the file's name, "environment", "command line" or "default" */
    int line;         /* 1-based; 0 outside files */
};
struct option_list {
    const struct option_item *items;
    size_t count;
};
struct option_listeners {
    void *items; /* count structs of table->listener_size, the default listener first if it exists */
    size_t count;
};

enum option_severity { OPTION_NOTICE, OPTION_WARNING, OPTION_ERROR };

struct option_problem {
    enum option_severity severity;
    const char *file; /* as in option_item */
    int line;
    const char *key;  /* "" when the line has none */
    const char *text; /* what is wrong (expected ...) */
};

enum option_source { OPTION_FROM_DEFAULT, OPTION_FROM_FILE, OPTION_FROM_ENVIRONMENT, OPTION_FROM_COMMAND_LINE };

struct option_origin {
    enum option_source source;
    const char *file;
    int line;
};

/* An empty set of values for a table (borrowed, lives longer). A table that contradicts itself (bad default, two specs of one name) is a
 * bug: CHECK. NULL without memory. */
struct options *options_new(const struct option_table *table);
void options_free(struct options *options);

/* Read values from a text. `file_name` is for messages, copied. Problems are collected. */
void options_parse_text(struct options *options, const char *file_name, struct span text);
/* The same from a file, with the directories it includes; a file that cannot be read is a problem of severity ERROR. */
void options_parse_file(struct options *options, const char *path);
/* Take the overrides out of `environment` (NULL-terminated "NAME=value"); an unknown TIDEGATE_ name gives a warning, those in lower case
 * are not ours. */
void options_parse_environment(struct options *options, char *const *environment);
/* One value from the command line; wins over everything. */
void options_set(struct options *options, const char *key, const char *value);

/* Check everything and fill `config` (table->config_size bytes). Once per struct options.
 * Returns 0, or ERR_INVALID when there is a problem of severity ERROR (config is filled as far as it went and must not be used). */
enum err options_finish(struct options *options, void *config) must_check;

/* parse_file (path may be NULL: none), parse_environment (may be NULL), finish. */
enum err options_load(struct options *options, const char *path, char *const *environment, void *config) must_check;

/* Report from validate(): `listener_index` counts in option_listeners, or -1 for an option of scope GLOBAL; the place of the value is
 * looked up. */
void options_problem(struct options *options, enum option_severity severity, const char *key, int listener_index, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* Report about one value of a repeatable option. */
void options_problem_item(struct options *options, enum option_severity severity, const struct option_item *item, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* What was found, in the order found; borrowed. */
size_t options_problem_count(const struct options *options, enum option_severity at_least);
const struct option_problem *options_problems(const struct options *options, size_t *count_out);
/* Append "file:line: key: text" lines; warnings and notices say so. */
void options_print_problems(const struct options *options, struct buf *out);

/* Where the effective value of an option comes from. After options_finish(). */
struct option_origin options_origin(const struct options *options, const char *key, int listener_index);

/* Effective values with their origin, in a form that is itself a valid file. After options_finish(). */
void options_dump(const struct options *options, struct buf *out);

/* The documents. */
void options_help(const struct option_table *table, struct buf *out);
void options_markdown(const struct option_table *table, struct buf *out);

/* What differs between two finished sets of one table, for reload: calls `on_change` for each option (listener_index -1 for GLOBAL). When
 * the listeners themselves differ in number, port or address, that is told once as key "listener". */
typedef void (*options_change_fn)(void *arg, const struct option_spec *spec, int listener_index, const char *before, const char *after);
void options_diff(const struct options *before, const struct options *after, options_change_fn on_change, void *arg);

/* The spec of a name; NULL when there is none. */
const struct option_spec *options_find_spec(const struct option_table *table, const char *name);

#endif
