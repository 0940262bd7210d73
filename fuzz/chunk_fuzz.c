/* A chunk of arbitrary bytes. Most mutations die at the CRC, so the CRC (and the size) is set right first: what is tested is the structure
 * behind it. What opens must decode without reading outside, or say that it does not hold. */
#include <stdlib.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "sink/store/chunk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_view(const struct chunk_view *view)
{
    static int64_t times[CHUNK_ROWS_MAX];
    static double values[CHUNK_ROWS_MAX];
    static uint64_t present[CHUNK_ROWS_MAX / 64];
    static struct column_scratch *scratch;
    if (!scratch)
        scratch = column_scratch_new();
    CHECK(scratch != NULL);
    CHECK(view->row_count >= 1);
    CHECK(view->row_count <= CHUNK_ROWS_MAX);
    if (chunk_decode_times(view, times) == ERR_OK)
        for (size_t i = 1; i < view->row_count; i++)
            CHECK(times[i - 1] < times[i]);
    for (size_t i = 0; i < view->column_count; i++) {
        CHECK(chunk_find_column(view, view->columns[i].name) == &view->columns[i]);
        CHECK(view->columns[i].stats.count >= 1);
        CHECK(view->columns[i].stats.count <= view->row_count);
        (void)!chunk_decode_column(view, &view->columns[i], scratch, values, present);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chunk_view view;
    if (chunk_open(&view, span_of(data, size)) == ERR_OK) {
        fuzz_view(&view);
        chunk_close(&view);
    }
    if (size < 20)
        return 0;
    uint8_t *fixed = malloc(size);
    CHECK(fixed != NULL);
    memcpy(fixed, data, size);
    store_le32(fixed, 0x4b434754);
    store_le32(fixed + 4, 1);
    store_le32(fixed + 8, (uint32_t)size);
    store_le32(fixed + size - 4, crc32c(0, fixed, size - 4));
    if (chunk_open(&view, span_of(fixed, size)) == ERR_OK) {
        fuzz_view(&view);
        chunk_close(&view);
    }
    free(fixed);
    return 0;
}
