#include "common/option_value.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/clock.h"

struct unit {
    const char *name;
    int64_t factor;
};

/* Largest first, so that printing finds the shortest exact text. */
static const struct unit size_units[] = {{"TiB", INT64_C(1) << 40},      {"GiB", 1 << 30},   {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1},
                                         {"TB", INT64_C(1000000000000)}, {"GB", 1000000000}, {"MB", 1000000},  {"kB", 1000},     {NULL, 0}};
static const struct unit mosquitto_units[] = {{"y", 365 * NS_PER_DAY},
                                              {"m", 30 * NS_PER_DAY},
                                              {"w", 7 * NS_PER_DAY},
                                              {"d", NS_PER_DAY},
                                              {"h", NS_PER_HOUR},
                                              {"s", NS_PER_S},
                                              {NULL, 0}};

bool option_parse_int(int64_t *value_out, struct span text)
{
    bool is_negative = text.size > 0 && text.data[0] == '-';
    int64_t value = 0;
    size_t at = is_negative ? 1 : 0;
    if (at == text.size)
        return false;
    for (; at < text.size; at++) {
        int digit = text.data[at] - '0';
        if (digit < 0 || digit > 9)
            return false;
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_sub_overflow(value, digit, &value))
            return false; /* counted downwards, so that INT64_MIN fits */
    }
    if (!is_negative && value == INT64_MIN)
        return false;
    *value_out = is_negative ? value : -value;
    return true;
}

bool option_parse_bool(bool *value_out, struct span text)
{
    bool is_true = span_equal(text, SPAN_LITERAL("true"));
    if (!is_true && !span_equal(text, SPAN_LITERAL("false")))
        return false;
    *value_out = is_true;
    return true;
}

/* An unsigned integer and a unit of the table, "" meaning `bare` when that is not 0. */
static bool parse_with_unit(int64_t *value_out, struct span text, const struct unit *units, int64_t bare)
{
    size_t digits = 0;
    int64_t count;
    while (digits < text.size && text.data[digits] >= '0' && text.data[digits] <= '9')
        digits++;
    if (digits == 0 || !option_parse_int(&count, span_of(text.data, digits)))
        return false;
    struct span name = span_of(text.data + digits, text.size - digits);
    int64_t factor = name.size == 0 ? bare : 0;
    for (const struct unit *unit = units; factor == 0 && unit->name; unit++)
        if (span_equal(name, span_of_string(unit->name)))
            factor = unit->factor;
    return factor != 0 && !__builtin_mul_overflow(count, factor, value_out);
}

bool option_parse_size(int64_t *bytes_out, struct span text) { return parse_with_unit(bytes_out, text, size_units, 1); }

static bool parse_duration(int64_t *duration_out, const struct option_spec *spec, struct span text)
{
    static const struct unit seconds[] = {{NULL, 0}};
    if ((spec->flags & OPTION_BARE_SECONDS) && parse_with_unit(duration_out, text, seconds, NS_PER_S))
        return true;
    if (spec->flags & OPTION_MOSQUITTO_UNITS)
        return parse_with_unit(duration_out, text, mosquitto_units, 0);
    return clock_parse_duration(duration_out, text);
}

static bool parse_number(int64_t *number_out, const struct option_spec *spec, struct span text)
{
    if (spec->type == OPTION_INT)
        return option_parse_int(number_out, text);
    if (spec->type == OPTION_SIZE)
        return option_parse_size(number_out, text);
    return parse_duration(number_out, spec, text);
}

static bool has_bounds(const struct option_spec *spec) { return spec->min != 0 || spec->max != 0; }

/* mosquitto's 0 or -1 that mean unlimited, where the spec says so. */
static bool is_magic_number(const struct option_spec *spec, struct span text)
{
    int64_t number;
    if (!option_parse_int(&number, text))
        return false;
    return (number == 0 && (spec->flags & OPTION_ZERO_UNLIMITED)) || (number == -1 && (spec->flags & OPTION_MINUS_ONE_UNLIMITED));
}

static void complain(struct errmsg *msg, const struct option_spec *spec, const char *text, const char *what)
{
    struct buf expected;
    buf_init(&expected, sizeof msg->text);
    option_value_print_expected(&expected, spec);
    option_value_print_magic(&expected, spec);
    err_set(msg, ERR_INVALID, "\"%.60s%s\" %s (expected %s)", text, strlen(text) > 60 ? "..." : "", what, buf_string(&expected));
    buf_deinit(&expected);
}

static bool parse_limit(union option_value *value_out, bool *is_magic_out, const struct option_spec *spec, const char *text,
                        struct errmsg *msg)
{
    struct span span = span_of_string(text);
    if (is_magic_number(spec, span)) {
        value_out->number = OPTION_UNLIMITED;
        *is_magic_out = true;
        return true;
    }
    if ((spec->flags & OPTION_MAY_BE_UNLIMITED) && strcmp(text, "unlimited") == 0) {
        value_out->number = OPTION_UNLIMITED;
        return true;
    }
    if (!parse_number(&value_out->number, spec, span)) {
        complain(msg, spec, text, spec->type == OPTION_INT ? "is no integer" : spec->type == OPTION_SIZE ? "is no size" : "is no duration");
        return false;
    }
    if ((has_bounds(spec) && (value_out->number < spec->min || value_out->number > spec->max)) || value_out->number == OPTION_UNLIMITED) {
        complain(msg, spec, text, "is out of range");
        return false;
    }
    return true;
}

static bool parse_choice(union option_value *value_out, const struct option_spec *spec, const char *text)
{
    for (const struct option_enum *choice = spec->enums; choice->name; choice++) {
        if (strcmp(choice->name, text) == 0) {
            value_out->choice = choice->value;
            return true;
        }
    }
    return false;
}

bool option_value_parse(union option_value *value_out, bool *is_magic_out, const struct option_spec *spec, const char *text,
                        struct errmsg *msg)
{
    *is_magic_out = false;
    switch (spec->type) {
    case OPTION_BOOL:
        if (option_parse_bool(&value_out->flag, span_of_string(text)))
            return true;
        complain(msg, spec, text, "is neither");
        return false;
    case OPTION_INT:
    case OPTION_SIZE:
    case OPTION_DURATION:
        return parse_limit(value_out, is_magic_out, spec, text, msg);
    case OPTION_STRING:
    case OPTION_PATH:
    case OPTION_STRINGS:
        value_out->text = text;
        return true;
    case OPTION_ENUM:
        if (parse_choice(value_out, spec, text))
            return true;
        complain(msg, spec, text, "is none of the choices");
        return false;
    case OPTION_LISTENER:
    case OPTION_INCLUDE_DIR:
        break;
    }
    UNREACHABLE();
}

void option_value_store(void *base, const struct option_spec *spec, union option_value value)
{
    char *field = (char *)base + spec->offset;
    switch (spec->type) {
    case OPTION_BOOL:
        memcpy(field, &value.flag, sizeof value.flag);
        return;
    case OPTION_INT:
    case OPTION_SIZE:
    case OPTION_DURATION:
        memcpy(field, &value.number, sizeof value.number);
        return;
    case OPTION_STRING:
    case OPTION_PATH:
        memcpy(field, &value.text, sizeof value.text);
        return;
    case OPTION_ENUM:
        memcpy(field, &value.choice, sizeof value.choice);
        return;
    case OPTION_STRINGS:
    case OPTION_LISTENER:
    case OPTION_INCLUDE_DIR:
        break;
    }
    UNREACHABLE();
}

static void print_with_unit(struct buf *out, int64_t value, const struct unit *units)
{
    if (value == 0) {
        buf_put_string(out, units == size_units ? "0" : "0h");
        return;
    }
    while (value % units->factor != 0)
        units++;
    buf_printf(out, "%" PRId64 "%s", value / units->factor, units->name);
}

static void print_number(struct buf *out, const struct option_spec *spec, int64_t number)
{
    char text[CLOCK_TEXT_SIZE];
    if (number == OPTION_UNLIMITED)
        buf_put_string(out, "unlimited");
    else if (spec->type == OPTION_INT)
        buf_printf(out, "%" PRId64, number);
    else if (spec->type == OPTION_SIZE)
        print_with_unit(out, number, size_units);
    else if ((spec->flags & OPTION_MOSQUITTO_UNITS) && number % NS_PER_S == 0)
        print_with_unit(out, number, mosquitto_units);
    else
        buf_put(out, text, clock_format_duration(text, number));
}

static const char *choice_name(const struct option_spec *spec, int value)
{
    for (const struct option_enum *choice = spec->enums; choice->name; choice++)
        if (choice->value == value)
            return choice->name;
    return "?";
}

void option_value_print(struct buf *out, const void *base, const struct option_spec *spec)
{
    union option_value value;
    const char *field = (const char *)base + spec->offset;
    switch (spec->type) {
    case OPTION_BOOL:
        memcpy(&value.flag, field, sizeof value.flag);
        buf_put_string(out, value.flag ? "true" : "false");
        break;
    case OPTION_INT:
    case OPTION_SIZE:
    case OPTION_DURATION:
        memcpy(&value.number, field, sizeof value.number);
        print_number(out, spec, value.number);
        break;
    case OPTION_STRING:
    case OPTION_PATH:
        memcpy(&value.text, field, sizeof value.text);
        buf_put_string(out, value.text ? value.text : "");
        break;
    case OPTION_ENUM:
        memcpy(&value.choice, field, sizeof value.choice);
        buf_put_string(out, choice_name(spec, value.choice));
        break;
    case OPTION_STRINGS:
    case OPTION_LISTENER:
    case OPTION_INCLUDE_DIR:
        break;
    }
}

/* " from A to B", leaving out an end that is the type's own. */
static void print_bounds(struct buf *out, const struct option_spec *spec)
{
    if (!has_bounds(spec))
        return;
    buf_put_string(out, " from ");
    print_number(out, spec, spec->min);
    if (spec->max != INT64_MAX) {
        buf_put_string(out, " to ");
        print_number(out, spec, spec->max);
    } else {
        buf_put_string(out, " up");
    }
}

void option_value_print_expected(struct buf *out, const struct option_spec *spec)
{
    switch (spec->type) {
    case OPTION_BOOL:
        buf_put_string(out, "true or false");
        break;
    case OPTION_INT:
        buf_put_string(out, "an integer");
        print_bounds(out, spec);
        break;
    case OPTION_SIZE:
        buf_put_string(out, "a size such as 64KiB or 1MiB");
        print_bounds(out, spec);
        break;
    case OPTION_DURATION:
        if (spec->flags & OPTION_MOSQUITTO_UNITS)
            buf_put_string(out, "a duration such as 12h, 3d, 2w, 1m (month) or 1y");
        else if (spec->flags & OPTION_BARE_SECONDS)
            buf_put_string(out, "seconds, or a duration such as 500ms or 10s");
        else
            buf_put_string(out, "a duration such as 200us, 10s or 1h");
        print_bounds(out, spec);
        break;
    case OPTION_STRING:
    case OPTION_STRINGS:
        buf_put_string(out, "a text");
        break;
    case OPTION_PATH:
        buf_put_string(out, "a path");
        break;
    case OPTION_ENUM:
        for (const struct option_enum *choice = spec->enums; choice->name; choice++)
            buf_printf(out, "%s%s", choice == spec->enums ? "" : choice[1].name ? ", " : " or ", choice->name);
        break;
    case OPTION_LISTENER:
        buf_put_string(out, "PORT [ADDRESS]");
        break;
    case OPTION_INCLUDE_DIR:
        buf_put_string(out, "a directory");
        break;
    }
    if (spec->flags & OPTION_MAY_BE_UNLIMITED)
        buf_put_string(out, ", or unlimited");
}

void option_value_print_magic(struct buf *out, const struct option_spec *spec)
{
    if (spec->flags & OPTION_ZERO_UNLIMITED)
        buf_put_string(out, "; 0 means unlimited");
    if (spec->flags & OPTION_MINUS_ONE_UNLIMITED)
        buf_put_string(out, "; -1 means unlimited");
}

const char *option_type_name(const struct option_spec *spec)
{
    static const char *const names[] = {"true|false", "INTEGER", "SIZE", "DURATION",       "TEXT",
                                        "PATH",       "CHOICE",  "TEXT", "PORT [ADDRESS]", "DIRECTORY"};
    return names[spec->type];
}
