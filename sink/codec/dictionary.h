/* Few distinct values as a table and the places in it.
 *
 * The table is ordered by value, so that neighbours in value are neighbours in place and the places may be coded as differences. The table
 * itself is coded as decimals where that is smaller, the places by codec/integers.h. Bit-exact: values are told apart by their bits. Pure.
 * Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_DICTIONARY_H
#define TIDEGATE_SINK_CODEC_DICTIONARY_H

#include "sink/codec/decimal.h"

#define DICTIONARY_VALUES_MAX 256

/* The distinct values of a column. */
struct dictionary {
    size_t count;
    uint64_t keys[DICTIONARY_VALUES_MAX]; /* sorted after dictionary_build: bits made comparable */
    int16_t slots[1024];                  /* hash table: index into keys, or -1 */
    uint16_t order[DICTIONARY_VALUES_MAX];
    uint16_t index[INTEGERS_COUNT_MAX]; /* for each value of the column: which key */
};

/* Collect the distinct values. Returns false, early, when there are more than value_count_max (<= DICTIONARY_VALUES_MAX). */
bool dictionary_build(struct dictionary *dict, size_t value_count_max, const double *values, size_t count);

/* Encode a column whose dictionary was built; returns the bytes used, 0 when they do not fit into `size`. */
size_t dictionary_encode(struct dictionary *dict, struct decimal_scratch *scratch, uint8_t *out, size_t size, size_t count, bool dense);

/* Decode exactly `count` values; integers: working memory for `count`. Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err dictionary_decode(double *values_out, int64_t *integers, size_t count, struct span bytes);

#endif
