/* The option table as text: --help, the reference document, dump, and what differs between two sets. */
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/option_value.h"
#include "common/options_internal.h"

#define HELP_WIDTH 100
#define HELP_INDENT 6

static const char *const reload_texts[] = {"at the next start", "for new connections", "at once"};

/* ---- help ---------------------------------------------------------------------------------------------------------------------------- */

/* Append text in lines of at most HELP_WIDTH columns, each indented. */
static void put_wrapped(struct buf *out, const char *text)
{
    size_t column = 0;
    while (*text) {
        size_t word = strcspn(text, " \n");
        if (column > 0 && column + 1 + word > HELP_WIDTH) {
            buf_put_byte(out, '\n');
            column = 0;
        }
        if (column == 0) {
            buf_printf(out, "%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        } else {
            buf_put_byte(out, ' ');
            column++;
        }
        buf_put(out, text, word);
        column += word;
        text += word;
        text += strspn(text, " \n");
    }
    buf_put_byte(out, '\n');
}

static void put_choices(struct buf *out, const struct option_spec *spec)
{
    for (const struct option_enum *choice = spec->enums; choice->name; choice++)
        buf_printf(out, "%s%s", choice == spec->enums ? "" : "|", choice->name);
}

static void put_form(struct buf *out, const struct option_spec *spec)
{
    if (spec->type == OPTION_ENUM)
        put_choices(out, spec);
    else
        buf_put_string(out, option_type_name(spec));
}

void options_help(const struct option_table *table, struct buf *out)
{
    buf_printf(out,
               "Options of %s: one `key value` a line of the configuration file, '#' begins a comment line.\n"
               "TIDEGATE_<KEY> in the environment overrides a key. Sizes take KiB, MiB, GiB; durations us, ms, s, m, h, d, w.\n",
               table->program);
    for (size_t i = 0; i < table->spec_count; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (spec->section)
            buf_printf(out, "\n%s\n", spec->section);
        buf_printf(out, "  %s ", spec->name);
        put_form(out, spec);
        if (spec->unit)
            buf_printf(out, " (%s)", spec->unit);
        if (spec->text)
            buf_printf(out, "  [%s]", spec->text);
        if (spec->type == OPTION_STRINGS || spec->type == OPTION_LISTENER)
            buf_put_string(out, "  (repeatable)");
        buf_put_byte(out, '\n');
        put_wrapped(out, spec->doc);
    }
}

/* ---- reference ------------------------------------------------------------------------------------------------------------------------
 */

static void put_markdown_cell(struct buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            buf_put_byte(out, '\\');
        buf_put_byte(out, *text == '\n' ? ' ' : (uint8_t)*text);
    }
}

static void put_markdown_values(struct buf *out, const struct option_spec *spec)
{
    struct buf expected;
    buf_init(&expected, 4096);
    option_value_print_expected(&expected, spec);
    put_markdown_cell(out, buf_string(&expected));
    buf_deinit(&expected);
    if (spec->unit)
        buf_printf(out, " (%s)", spec->unit);
    option_value_print_magic(out, spec);
    if (spec->type == OPTION_STRINGS || spec->type == OPTION_LISTENER)
        buf_put_string(out, "; repeatable");
}

static void put_markdown_meaning(struct buf *out, const struct option_spec *spec)
{
    put_markdown_cell(out, spec->doc);
    if (spec->scope == OPTION_IN_LISTENER)
        buf_put_string(out, " Per listener.");
    if (spec->scope == OPTION_SECURITY)
        buf_put_string(out, " For all listeners, or per listener with `per_listener_settings true`.");
    if (spec->flags & OPTION_MOSQUITTO)
        buf_put_string(out, " *Name and meaning as in mosquitto.*");
    if (spec->mosquitto) {
        buf_put_string(out, " *Differs from mosquitto: ");
        put_markdown_cell(out, spec->mosquitto);
        buf_put_byte(out, '*');
    }
}

static void put_markdown_head(struct buf *out, const char *section)
{
    buf_printf(out, "\n## %s\n\n| key | value | default | a change takes effect | meaning |\n|---|---|---|---|---|\n", section);
}

static void put_markdown_foreign(const struct option_table *table, struct buf *out)
{
    if (table->foreign_count == 0)
        return;
    buf_put_string(out,
                   "\n## Options of mosquitto that are not supported\n\n| key | what happens | why, or what instead |\n|---|---|---|\n");
    for (size_t i = 0; i < table->foreign_count; i++) {
        const struct option_foreign *foreign = &table->foreign[i];
        buf_printf(out, "| `%s` | %s | ", foreign->name, foreign->harmless ? "ignored with a warning" : "error");
        put_markdown_cell(out, foreign->text);
        buf_put_string(out, " |\n");
    }
}

void options_markdown(const struct option_table *table, struct buf *out)
{
    buf_printf(out,
               "# Options of %s\n\nGenerated from the program's option table; do not edit.\n\n"
               "One `key value` a line; a line that begins with `#` is a comment. Every key can be set by the environment as "
               "`TIDEGATE_<KEY>` in upper case\n"
               "(repeatable ones separated by newlines or `;`), which overrides the file. The last value of a key counts.\n"
               "Sizes take `B KiB MiB GiB TiB` (and `kB MB GB TB`), durations `ns us ms s m h d w`.\n",
               table->program);
    for (size_t i = 0; i < table->spec_count; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (spec->section || i == 0)
            put_markdown_head(out, spec->section ? spec->section : "General");
        buf_printf(out, "| `%s` | ", spec->name);
        put_markdown_values(out, spec);
        buf_put_string(out, " | ");
        if (spec->text && spec->text[0]) {
            buf_put_byte(out, '`');
            put_markdown_cell(out, spec->text);
            buf_put_byte(out, '`');
        }
        buf_printf(out, " | %s | ", reload_texts[spec->reload]);
        put_markdown_meaning(out, spec);
        buf_put_string(out, " |\n");
    }
    put_markdown_foreign(table, out);
}

/* ---- dump ---------------------------------------------------------------------------------------------------------------------------- */

/* Comments that name the origin of the lines below them, only when it changes. */
struct dumper {
    const struct options *options;
    struct buf *out;
    enum option_source source;
    const char *file;
    int line;
    bool has_origin;
};

static void dump_origin(struct dumper *dumper, enum option_source source, const char *file, int line)
{
    static const char *const source_names[] = {"default", NULL, "environment", "command line"};
    if (dumper->has_origin && dumper->source == source &&
        (source != OPTION_FROM_FILE || (dumper->line == line && strcmp(dumper->file, file) == 0)))
        return;
    dumper->has_origin = true;
    dumper->source = source;
    dumper->file = file;
    dumper->line = line;
    if (source == OPTION_FROM_FILE)
        buf_printf(dumper->out, "# %s:%d\n", file, line);
    else
        buf_printf(dumper->out, "# %s\n", source_names[source]);
}

static enum option_source item_source(const struct option_item *item)
{
    if (item->line > 0)
        return OPTION_FROM_FILE;
    if (strcmp(item->file, "environment") == 0)
        return OPTION_FROM_ENVIRONMENT;
    return strcmp(item->file, "command line") == 0 ? OPTION_FROM_COMMAND_LINE : OPTION_FROM_DEFAULT;
}

/* Whether this spec is the first of those that share its list: the list is shown once, in its own order. */
static bool is_first_of_list(const struct option_table *table, const struct option_spec *spec)
{
    for (const struct option_spec *other = table->specs; other < spec; other++)
        if (other->type == OPTION_STRINGS && other->offset == spec->offset &&
            (other->scope == OPTION_GLOBAL) == (spec->scope == OPTION_GLOBAL))
            return false;
    return true;
}

static void dump_list(struct dumper *dumper, const struct option_spec *spec, int listener_index)
{
    struct option_list list;
    if (!is_first_of_list(dumper->options->table, spec))
        return;
    memcpy(&list, (const char *)options_base(dumper->options, spec, listener_index) + spec->offset, sizeof list);
    for (size_t i = 0; i < list.count; i++) {
        dump_origin(dumper, item_source(&list.items[i]), list.items[i].file, list.items[i].line);
        buf_printf(dumper->out, "%s %s\n", list.items[i].key, (spec->flags & OPTION_SECRET) ? "***" : list.items[i].value);
    }
    if (list.count == 0)
        buf_printf(dumper->out, "# %s is not set\n", spec->name);
}

static bool is_unset_string(const struct option_spec *spec, const void *base)
{
    const char *text;
    if (spec->type != OPTION_STRING && spec->type != OPTION_PATH)
        return false;
    memcpy(&text, (const char *)base + spec->offset, sizeof text);
    return !text;
}

/* Neither set nor with a default: its zero need not be a value that could be written. */
static bool is_unset_number(const struct option_spec *spec, const struct assignment *assignment)
{
    return !assignment && !spec->text && (spec->type == OPTION_INT || spec->type == OPTION_SIZE || spec->type == OPTION_DURATION);
}

static void dump_value(struct dumper *dumper, const struct option_spec *spec, int listener_index)
{
    if (spec->type == OPTION_LISTENER || spec->type == OPTION_INCLUDE_DIR)
        return;
    if (spec->type == OPTION_STRINGS) {
        dump_list(dumper, spec, listener_index);
        return;
    }
    const void *base = options_base(dumper->options, spec, listener_index);
    int block = listener_index >= 0 ? dumper->options->listener_blocks[listener_index] : BLOCK_DEFAULT;
    const struct assignment *assignment = options_resolve(dumper->options, spec, block);
    if (is_unset_string(spec, base) || is_unset_number(spec, assignment)) {
        buf_printf(dumper->out, "# %s is not set\n", spec->name);
        return;
    }
    if (assignment)
        dump_origin(dumper, assignment->source, assignment->file, assignment->line);
    else
        dump_origin(dumper, OPTION_FROM_DEFAULT, "default", 0);
    buf_printf(dumper->out, "%s ", spec->name);
    if (spec->flags & OPTION_SECRET)
        buf_put_string(dumper->out, "***");
    else
        option_value_print(dumper->out, base, spec);
    buf_put_byte(dumper->out, '\n');
}

/* `listener PORT ADDRESS` of a block; the default listener is told by its own keys instead. */
static void dump_listener_line(struct dumper *dumper, int listener_index)
{
    const struct options *options = dumper->options;
    const struct option_table *table = options->table;
    int block = options->listener_blocks[listener_index];
    buf_put_byte(dumper->out, '\n');
    dumper->has_origin = false;
    if (block == BLOCK_DEFAULT)
        return;
    const struct option_spec *port = options_find_spec(table, table->listener_port_name);
    const struct option_spec *address = options_find_spec(table, table->listener_address_name);
    dump_origin(dumper, options->blocks[block].source, options->blocks[block].file, options->blocks[block].line);
    buf_put_string(dumper->out, "listener ");
    option_value_print(dumper->out, options_base(options, port, listener_index), port);
    if (!is_unset_string(address, options_base(options, address, listener_index))) {
        buf_put_byte(dumper->out, ' ');
        option_value_print(dumper->out, options_base(options, address, listener_index), address);
    }
    buf_put_byte(dumper->out, '\n');
}

static bool is_address_of_listener_line(const struct options *options, const struct option_spec *spec, int listener_index)
{
    const struct option_table *table = options->table;
    return options->listener_blocks[listener_index] != BLOCK_DEFAULT &&
           (strcmp(spec->name, table->listener_port_name) == 0 || strcmp(spec->name, table->listener_address_name) == 0);
}

void options_dump(const struct options *options, struct buf *out)
{
    const struct option_table *table = options->table;
    struct dumper dumper = {.options = options, .out = out};
    CHECK(options->is_finished);
    for (size_t i = 0; i < table->spec_count; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (options_is_shared(options, spec) && (spec->scope == OPTION_GLOBAL || options->listener_count > 0))
            dump_value(&dumper, spec, spec->scope == OPTION_GLOBAL ? -1 : 0);
    }
    for (int listener_index = 0; listener_index < options->listener_count; listener_index++) {
        dump_listener_line(&dumper, listener_index);
        for (size_t i = 0; i < table->spec_count; i++) {
            const struct option_spec *spec = &table->specs[i];
            if (!options_is_shared(options, spec) && !is_address_of_listener_line(options, spec, listener_index))
                dump_value(&dumper, spec, listener_index);
        }
    }
}

/* ---- diff ---------------------------------------------------------------------------------------------------------------------------- */

static void print_field(struct buf *out, const struct options *options, const struct option_spec *spec, int listener_index)
{
    const void *base = options_base(options, spec, listener_index);
    if (spec->type != OPTION_STRINGS) {
        option_value_print(out, base, spec);
        return;
    }
    struct option_list list;
    memcpy(&list, (const char *)base + spec->offset, sizeof list);
    for (size_t i = 0; i < list.count; i++)
        buf_printf(out, "%s%s %s", i ? "\n" : "", list.items[i].key, list.items[i].value);
}

static void compare_field(const struct options *before, const struct options *after, const struct option_spec *spec, int listener_index,
                          options_change_fn on_change, void *arg)
{
    struct buf text_before, text_after;
    if (spec->type == OPTION_LISTENER || spec->type == OPTION_INCLUDE_DIR ||
        (spec->type == OPTION_STRINGS && !is_first_of_list(before->table, spec)))
        return;
    buf_init(&text_before, OPTIONS_FILE_SIZE_MAX * 2);
    buf_init(&text_after, OPTIONS_FILE_SIZE_MAX * 2);
    print_field(&text_before, before, spec, listener_index);
    print_field(&text_after, after, spec, listener_index);
    bool is_secret = spec->flags & OPTION_SECRET;
    if (!span_equal(buf_span(&text_before), buf_span(&text_after)))
        on_change(arg, spec, listener_index, is_secret ? "***" : buf_string(&text_before), is_secret ? "***" : buf_string(&text_after));
    buf_deinit(&text_before);
    buf_deinit(&text_after);
}

/* "1883 127.0.0.1, 8883" */
static void print_listeners(struct buf *out, const struct options *options)
{
    const struct option_table *table = options->table;
    const struct option_spec *port = options_find_spec(table, table->listener_port_name);
    const struct option_spec *address = options_find_spec(table, table->listener_address_name);
    for (int i = 0; i < options->listener_count; i++) {
        buf_put_string(out, i ? ", " : "");
        option_value_print(out, options_base(options, port, i), port);
        if (!is_unset_string(address, options_base(options, address, i))) {
            buf_put_byte(out, ' ');
            option_value_print(out, options_base(options, address, i), address);
        }
    }
}

/* Whether both have the same listeners; tells it when not. */
static bool compare_listeners(const struct options *before, const struct options *after, options_change_fn on_change, void *arg)
{
    static const struct option_spec any_listener = {.name = "listener", .type = OPTION_LISTENER, .doc = "the listeners"};
    const struct option_spec *spec = options_find_spec(before->table, "listener");
    struct buf text_before, text_after;
    buf_init(&text_before, OPTIONS_FILE_SIZE_MAX);
    buf_init(&text_after, OPTIONS_FILE_SIZE_MAX);
    print_listeners(&text_before, before);
    print_listeners(&text_after, after);
    bool is_same = span_equal(buf_span(&text_before), buf_span(&text_after));
    if (!is_same)
        on_change(arg, spec ? spec : &any_listener, -1, buf_string(&text_before), buf_string(&text_after));
    buf_deinit(&text_before);
    buf_deinit(&text_after);
    return is_same;
}

void options_diff(const struct options *before, const struct options *after, options_change_fn on_change, void *arg)
{
    const struct option_table *table = before->table;
    CHECK(before->table == after->table);
    CHECK(before->is_finished);
    CHECK(after->is_finished);
    for (size_t i = 0; i < table->spec_count; i++)
        if (table->specs[i].scope == OPTION_GLOBAL)
            compare_field(before, after, &table->specs[i], -1, on_change, arg);
    if (table->listener_size == 0 || !compare_listeners(before, after, on_change, arg))
        return;
    for (int listener_index = 0; listener_index < before->listener_count; listener_index++)
        for (size_t i = 0; i < table->spec_count; i++)
            /* what all listeners share is told once */
            if (table->specs[i].scope != OPTION_GLOBAL && (listener_index == 0 || !options_is_shared(after, &table->specs[i])))
                compare_field(before, after, &table->specs[i], listener_index, on_change, arg);
}
