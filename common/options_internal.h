/* What options.c (reading, checking, filling) and options_document.c (help, reference, dump, diff) share. Nobody else includes it. */
#ifndef TIDEGATE_COMMON_OPTIONS_INTERNAL_H
#define TIDEGATE_COMMON_OPTIONS_INTERNAL_H

#include "common/options.h"

#define BLOCK_ALL (-1)  /* from environment or command line: holds for every listener */
#define BLOCK_DEFAULT 0 /* before the first `listener` line; block n > 0 belongs to the n-th */

/* One value as it was found. Values of wrong form are reported and not kept. */
struct assignment {
    const struct option_spec *spec;
    const char *value; /* in the arena; NULL: an empty environment variable, which empties a list */
    int block;
    enum option_source source;
    const char *file;
    int line;
};

/* A `listener` line. */
struct listener_block {
    enum option_source source;
    const char *file;
    int line;
};

struct arena_chunk {
    struct arena_chunk *next;
};

struct options {
    const struct option_table *table;
    struct arena_chunk *arena;
    struct assignment *assignments;
    size_t assignment_count;
    size_t assignment_capacity;
    struct option_problem *problems;
    size_t problem_count;
    size_t problem_capacity;
    size_t error_count;
    struct listener_block *blocks; /* blocks[0] stands for the default listener */
    int block_count;               /* with blocks[0] */
    int block_current;
    int *listener_blocks; /* of the finished config: the block of each listener */
    int listener_count;
    const char *main_file;
    int include_depth;
    bool may_include; /* options_parse_file() is running: the file system may be read */
    bool is_finished;
    bool per_listener; /* SECURITY options are per listener */
    void *config;      /* our copy of what was filled, for dump and diff */
};

/* The assignment that decides a spec in a block (any block for GLOBAL); NULL: the default does. Not for lists. */
const struct assignment *options_resolve(const struct options *options, const struct option_spec *spec, int block);
/* Whether the spec has one value for all listeners or none at all to do with them. */
bool options_is_shared(const struct options *options, const struct option_spec *spec);
/* The base of the struct in which listener `listener_index` (or -1: the program) keeps the field, in options->config. */
const void *options_base(const struct options *options, const struct option_spec *spec, int listener_index);

#endif
