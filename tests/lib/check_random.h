/* Deterministic pseudo-random numbers for model tests: one 64-bit seed reproduces a run (splitmix64 seeds xoshiro256**).
 *
 *     struct check_random random;
 *     check_random_init(&random, check_random_seed(1));      // TIDEGATE_SEED=n overrides; the seed is printed
 *     for (int step = 0; step < 10000; step++)
 *         switch (check_random_below(&random, 3)) { ... }
 *
 * Owned by the caller, one thread. Not for secrets. */
#ifndef TIDEGATE_TESTS_LIB_CHECK_RANDOM_H
#define TIDEGATE_TESTS_LIB_CHECK_RANDOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct check_random {
    uint64_t state[4];
};

/* The seed of a test: TIDEGATE_SEED of the environment, or `seed`; printed to stderr so that a failure can be repeated. */
uint64_t check_random_seed(uint64_t seed);

/* The same seed gives the same sequence on every machine. */
void check_random_init(struct check_random *random, uint64_t seed);

/* 64 uniform bits. */
uint64_t check_random_next(struct check_random *random);

/* Uniform in 0..bound-1, without bias; bound > 0. */
uint64_t check_random_below(struct check_random *random, uint64_t bound);

/* Uniform in low..high, both included; low <= high. */
int64_t check_random_between(struct check_random *random, int64_t low, int64_t high);

/* True with probability numerator/denominator. */
bool check_random_chance(struct check_random *random, uint32_t numerator, uint32_t denominator);

/* Uniform in [0, 1). */
double check_random_unit(struct check_random *random);

/* A size that is mostly small, sometimes 0, sometimes near or at `size_max`: what finds mistakes at the edges. */
size_t check_random_size(struct check_random *random, size_t size_max);

/* Fill `size` bytes at `data`. */
void check_random_fill(struct check_random *random, void *data, size_t size);

/* Write a NUL-terminated word of `length` letters a..z into `text` (room for length + 1). */
void check_random_word(struct check_random *random, char *text, size_t length);

/* Fisher-Yates over `count` elements of `element_size` bytes. */
void check_random_shuffle(struct check_random *random, void *elements, size_t count, size_t element_size);

#endif
