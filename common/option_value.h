/* One value of the option table: text to field and back. Pure. */
#ifndef TIDEGATE_COMMON_OPTION_VALUE_H
#define TIDEGATE_COMMON_OPTION_VALUE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"
#include "common/option_spec.h"

union option_value {
    bool flag;
    int choice;
    int64_t number;
    const char *text; /* borrowed from the text that was parsed */
};

/* Parse `text` (NUL-terminated, trimmed) for a spec of a type with a field, lists excepted. On failure writes what is wrong, with what was
 * expected, to `msg`.
 * `*is_magic_out`: the value was one of mosquitto's numbers for unlimited. */
bool option_value_parse(union option_value *value_out, bool *is_magic_out, const struct option_spec *spec, const char *text,
                        struct errmsg *msg);
/* Put a value into its field below `base`. */
void option_value_store(void *base, const struct option_spec *spec, union option_value value);
/* Append the field's value as one would write it; nothing for an unset string and for lists. */
void option_value_print(struct buf *out, const void *base, const struct option_spec *spec);
/* Append what a value looks like, "an integer from 1 to 65535, or unlimited". */
void option_value_print_expected(struct buf *out, const struct option_spec *spec);
/* Append which number of mosquitto's is no number, "; 0 means unlimited"; nothing for most. */
void option_value_print_magic(struct buf *out, const struct option_spec *spec);
/* The type's name in the documents. */
const char *option_type_name(const struct option_spec *spec);

/* The single values, for command lines and query arguments. Return false, with nothing written, when malformed. */
bool option_parse_size(int64_t *bytes_out, struct span text);
bool option_parse_bool(bool *value_out, struct span text);
bool option_parse_int(int64_t *value_out, struct span text);

#endif
