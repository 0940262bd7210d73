/* A column of doubles as bytes: tries the codecs that have a chance and keeps the smallest; bit-exact for every double.
 *
 * Candidates: constant, decimal integers (codec/decimal.h), dictionary (codec/dictionary.h), Gorilla XOR (codec/gorilla.h), raw. A codec
 * byte in front says which; a reader that does not know it answers ERR_VERSION. Values that rows lack are a run-length coded
 * presence bitmap in front of the values.
 *
 * Bounds: at most COLUMN_ROWS_MAX rows; the encoded size never exceeds column_size_max(). Decoding arbitrary bytes is safe: it ends
 * in an error or in some values. Pure. Thread: any; a scratch belongs to one at a time. */
#ifndef TIDEGATE_SINK_CODEC_COLUMN_H
#define TIDEGATE_SINK_CODEC_COLUMN_H

#include "common/bytes.h"
#include "common/err.h"

#define COLUMN_ROWS_MAX 4096

/* How hard the encoder tries. */
enum column_effort {
    COLUMN_GORILLA, /* Gorilla alone: the reference to measure against */
    COLUMN_FAST,    /* what a flush uses */
    COLUMN_DENSE,   /* what compaction uses: slower candidates too */
};

/* Working memory of encoder and decoder, about 200 KiB, to be reused. NULL without memory. */
struct column_scratch;
struct column_scratch *column_scratch_new(void);
void column_scratch_free(struct column_scratch *scratch);

/* The bound of the encoded size of `row_count` rows. */
static inline size_t column_size_max(size_t row_count) { return 32 + row_count * 8 + row_count / 8; }

/* Encode row_count (1..COLUMN_ROWS_MAX) rows of values into out, which has room for column_size_max(row_count) bytes.
 * present  bit i of word i / 64: row i has a value; NULL: all have. values of absent rows are not looked at.
 * Returns the size in bytes. Does not allocate. */
size_t column_encode(struct column_scratch *scratch, uint8_t *out, const double *values, const uint64_t *present, size_t row_count,
                     enum column_effort effort);

/* Decode a column of row_count rows. values_out: room for row_count, absent ones are set to 0; present_out: (row_count + 63) / 64 words,
 * bits past the end are 0. Returns 0, ERR_CORRUPT, ERR_VERSION (unknown codec). Does not allocate. */
must_check enum err column_decode(struct column_scratch *scratch, double *values_out, uint64_t *present_out, size_t row_count,
                                  struct span bytes);

/* Name of the codec of an encoded column, for tools: "decimal", "gorilla", ...; "unknown" for others. */
const char *column_codec_name(struct span bytes);

#endif
