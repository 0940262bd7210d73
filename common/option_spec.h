/* One row of a table of options: its name, type, bounds, default and words; common/options.h says what is made of a table. */
#ifndef TIDEGATE_COMMON_OPTION_SPEC_H
#define TIDEGATE_COMMON_OPTION_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a limit that is off holds in its int64_t field: greater than any limit, so `value >= limit` needs no special case. */
#define OPTION_UNLIMITED INT64_MAX

/* Type, and the field that it fills:                                                                                                */
enum option_type {
    OPTION_BOOL,       /* bool:            true | false                                                                             */
    OPTION_INT,        /* int64_t:         decimal, within min..max                                                                  */
    OPTION_SIZE,       /* int64_t bytes:   integer and B KiB MiB GiB TiB (or kB MB GB TB, powers of ten); a bare number is bytes     */
    OPTION_DURATION,   /* int64_t ns:      integer and ns us ms s m h d w; "0" bare                                                  */
    OPTION_STRING,     /* const char *:    rest of the line; NULL when there is neither value nor default                            */
    OPTION_PATH,       /* const char *:    the same; documented as a path                                                            */
    OPTION_ENUM,       /* int:             one of `enums`                                                                            */
    OPTION_STRINGS,    /* option_list:     repeatable; specs that share an offset share the list and keep their common order         */
    OPTION_LISTENER,   /* (no field):      PORT [ADDRESS]; opens a listener block, sets the table's port and address specs           */
    OPTION_INCLUDE_DIR /* (no field):      directory whose *.conf are read here, in the order of their names                         */
};

/* Where a value may stand. */
enum option_scope {
    OPTION_GLOBAL,      /* anywhere, one value; field in the config struct                                                              */
    OPTION_IN_LISTENER, /* per listener block; field in the listener struct                                                          */
    OPTION_SECURITY     /* field in the listener struct; one value for all listeners, unless the option named by the table's
                           per_listener_name is true: then per listener block, as mosquitto's per_listener_settings does               */
};

/* When a changed value takes effect on reload. */
enum option_reload {
    OPTION_RELOAD_RESTART, /* with the next start               */
    OPTION_RELOAD_NEW,     /* for connections made afterwards   */
    OPTION_RELOAD_LIVE     /* at once                           */
};

enum option_flag {
    OPTION_MAY_BE_UNLIMITED = 1 << 0,    /* "unlimited" is a value (OPTION_UNLIMITED)                                                */
    OPTION_ZERO_UNLIMITED = 1 << 1,      /* mosquitto's name: 0 means unlimited; gives a notice                                      */
    OPTION_MINUS_ONE_UNLIMITED = 1 << 2, /* mosquitto's name: -1 means unlimited; gives a notice                                     */
    OPTION_BARE_SECONDS = 1 << 3,        /* mosquitto's duration: a bare number is seconds                                           */
    OPTION_MOSQUITTO_UNITS = 1 << 4,     /* mosquitto's duration: units h d w m y, m is a month of 30 days, y a year of 365          */
    OPTION_SECRET = 1 << 5,              /* dump shows *** for its value                                                             */
    OPTION_MOSQUITTO = 1 << 6,           /* name and meaning are mosquitto's; said in the reference                                  */
    OPTION_REQUIRED = 1 << 7,            /* must be set (only useful without a default)                                              */
    OPTION_BLANK_ALLOWED = 1 << 8        /* STRING, PATH: a key without value is the empty string instead of an error                */
};

struct option_enum {
    const char *name; /* NULL ends the list */
    int value;
};

struct option_spec {
    const char *name;
    enum option_type type;
    enum option_scope scope;
    enum option_reload reload;
    unsigned flags;   /* enum option_flag */
    size_t offset;    /* of the field in the config struct, or in the listener struct */
    const char *text; /* default as one would write it; NULL: unset (false, 0, NULL, empty list, enums[0]) */
    int64_t min;      /* INT, SIZE (bytes), DURATION (ns); both 0: no bounds but the type's */
    int64_t max;      /* "unlimited" is not held to it */
    const struct option_enum *enums;
    const char *unit;      /* for the documents, where the type does not say it: "messages", "messages/s" */
    const char *doc;       /* one or more sentences: what it does, what follows from a larger or smaller value */
    const char *section;   /* for the documents: a heading; NULL: as the one before */
    const char *mosquitto; /* how we differ from mosquitto, for the reference; NULL: not at all */
};

#endif
