#include "tests/lib/check_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"

uint64_t check_random_seed(uint64_t seed)
{
    const char *text = getenv("TIDEGATE_SEED");
    if (text && *text)
        seed = strtoull(text, NULL, 0);
    fprintf(stderr, "seed %" PRIu64 " (TIDEGATE_SEED=%" PRIu64 " repeats)\n", seed, seed);
    return seed;
}

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void check_random_init(struct check_random *random, uint64_t seed)
{
    for (size_t i = 0; i < 4; i++)
        random->state[i] = splitmix64(&seed);
}

static uint64_t rotate_left(uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

uint64_t check_random_next(struct check_random *random)
{
    uint64_t *s = random->state;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t check_random_below(struct check_random *random, uint64_t bound)
{
    CHECK(bound > 0);
    uint64_t threshold = -bound % bound; /* 2^64 mod bound: what lies below it would favour small results */
    for (;;) {
        uint64_t value = check_random_next(random);
        if (value >= threshold)
            return value % bound;
    }
}

int64_t check_random_between(struct check_random *random, int64_t low, int64_t high)
{
    CHECK(low <= high);
    uint64_t width = (uint64_t)high - (uint64_t)low + 1;
    uint64_t offset = width == 0 ? check_random_next(random) : check_random_below(random, width);
    return (int64_t)((uint64_t)low + offset);
}

bool check_random_chance(struct check_random *random, uint32_t numerator, uint32_t denominator)
{
    return check_random_below(random, denominator) < numerator;
}

double check_random_unit(struct check_random *random) { return (double)(check_random_next(random) >> 11) * 0x1p-53; }

size_t check_random_size(struct check_random *random, size_t size_max)
{
    uint64_t kind = check_random_below(random, 16);
    if (kind == 0)
        return 0;
    if (kind == 1)
        return size_max - (size_t)check_random_below(random, size_max < 3 ? size_max + 1 : 3);
    if (kind < 4)
        return (size_t)check_random_below(random, (uint64_t)size_max + 1);
    size_t small = size_max < 64 ? size_max : 64;
    return (size_t)check_random_below(random, small + 1);
}

void check_random_fill(struct check_random *random, void *data, size_t size)
{
    uint8_t *at = data;
    while (size > 0) {
        uint64_t value = check_random_next(random);
        size_t part = size < sizeof value ? size : sizeof value;
        memcpy(at, &value, part);
        at += part;
        size -= part;
    }
}

void check_random_word(struct check_random *random, char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        text[i] = (char)('a' + check_random_below(random, 26));
    text[length] = '\0';
}

void check_random_shuffle(struct check_random *random, void *elements, size_t count, size_t element_size)
{
    uint8_t *base = elements;
    for (size_t i = count; i > 1; i--) {
        uint8_t *a = base + (i - 1) * element_size;
        uint8_t *b = base + (size_t)check_random_below(random, i) * element_size;
        for (size_t byte = 0; byte < element_size; byte++) {
            uint8_t held = a[byte];
            a[byte] = b[byte];
            b[byte] = held;
        }
    }
}
