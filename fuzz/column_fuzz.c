/* Decoders of columns and times on arbitrary bytes: no crash, no read outside, and what decodes encodes and decodes to the same again.
 * Input: 2 bytes row count, then the column (or, with the highest bit of the count set, a time column). */
#include <stdlib.h>

#include "common/check.h"
#include "sink/codec/column.h"
#include "sink/codec/timestamps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_times(size_t row_count, struct span bytes)
{
    static int64_t times[INTEGERS_COUNT_MAX], again[INTEGERS_COUNT_MAX];
    static struct timestamps_scratch scratch;
    static uint8_t out[64 + INTEGERS_COUNT_MAX * 9];
    if (timestamps_decode(times, row_count, bytes) != ERR_OK)
        return;
    for (int dense = 0; dense < 2; dense++) {
        size_t used = timestamps_encode(&scratch, out, times, row_count, dense);
        CHECK(used <= timestamps_size_max(row_count));
        CHECK(timestamps_decode(again, row_count, span_of(out, used)) == ERR_OK);
        CHECK(memcmp(times, again, row_count * sizeof *times) == 0);
    }
}

static void fuzz_column(size_t row_count, struct span bytes)
{
    static double values[COLUMN_ROWS_MAX], again[COLUMN_ROWS_MAX];
    static uint64_t present[COLUMN_ROWS_MAX / 64], present_again[COLUMN_ROWS_MAX / 64];
    static uint8_t out[64 + COLUMN_ROWS_MAX * 9];
    struct column_scratch *scratch = column_scratch_new();
    CHECK(scratch != NULL);
    if (column_decode(scratch, values, present, row_count, bytes) == ERR_OK) {
        for (enum column_effort effort = COLUMN_GORILLA; effort <= COLUMN_DENSE; effort++) {
            size_t used = column_encode(scratch, out, values, present, row_count, effort);
            CHECK(used <= column_size_max(row_count));
            CHECK(column_decode(scratch, again, present_again, row_count, span_of(out, used)) == ERR_OK);
            CHECK(memcmp(values, again, row_count * sizeof *values) == 0);
            CHECK(memcmp(present, present_again, (row_count + 63) / 64 * sizeof *present) == 0);
        }
    }
    column_scratch_free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    unsigned head = load_le16(data);
    size_t row_count = (head & 0x7fff) % COLUMN_ROWS_MAX + 1;
    struct span bytes = span_of(data + 2, size - 2);
    if (head & 0x8000)
        fuzz_times(row_count, bytes);
    else
        fuzz_column(row_count, bytes);
    return 0;
}
