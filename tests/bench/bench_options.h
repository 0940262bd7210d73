/* The options of a benchmark program as a table: --NAME VALUE, or --NAME for a flag. What is no option is left at argv[optind].
 * Header-only; Linux. */
#ifndef TIDEGATE_TESTS_BENCH_BENCH_OPTIONS_H
#define TIDEGATE_TESTS_BENCH_BENCH_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define BENCH_OPTIONS_MAX 16

/* One of the places is set. */
struct bench_option {
    const char *name;
    int *number;
    uint64_t *count;
    double *real;
    const char **text; /* borrowed from argv */
    bool *flag;
};

static inline void bench_option_set(const struct bench_option *option, const char *value)
{
    if (option->number)
        *option->number = atoi(value);
    else if (option->count)
        *option->count = strtoull(value, NULL, 10);
    else if (option->real)
        *option->real = atof(value);
    else if (option->text)
        *option->text = value;
    else
        *option->flag = true;
}

/* options ends with a row without a name. Exits with 2 when an argument is none of these; getopt has said which. */
static inline void bench_options_parse(int argc, char **argv, const struct bench_option *options)
{
    struct option longs[BENCH_OPTIONS_MAX + 1] = {{0}};
    for (size_t i = 0; options[i].name; i++) {
        if (i == BENCH_OPTIONS_MAX)
            abort();
        longs[i] = (struct option){.name = options[i].name, .has_arg = options[i].flag ? no_argument : required_argument};
    }
    int c, index = 0;
    while ((c = getopt_long(argc, argv, "", longs, &index)) != -1) {
        if (c != 0)
            exit(2);
        bench_option_set(&options[index], optarg);
    }
}

#endif
