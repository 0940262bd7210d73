/* A payload of arbitrary bytes: an answer, rows that point inside, names within their bounds, and the same answer when asked twice. */
#include <math.h>

#include "common/check.h"
#include "sink/decode/payload.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static double look(const struct payload_batch *batch)
{
    double sum = 0;
    uint32_t point_next = 0;
    size_t reject_count = 0;
    CHECK(batch->row_count > 0);
    for (size_t r = 0; r < batch->row_count; r++) {
        const struct payload_row *row = &batch->rows[r];
        reject_count += row->reject != REJECT_NONE;
        CHECK(row->point_first == point_next);
        CHECK(row->reject != REJECT_NONE || row->point_count > 0);
        point_next += row->point_count;
        for (uint32_t p = row->point_first; p < point_next; p++) {
            CHECK(isfinite(batch->points[p].value));
            CHECK(batch->points[p].metric.size >= 1);
            CHECK(batch->points[p].metric.size <= JSON_NAME_MAX);
            for (size_t i = 0; i < batch->points[p].metric.size; i++)
                sum += batch->points[p].metric.data[i];
            /* A name is in a row once. */
            for (uint32_t q = row->point_first; q < p && p - row->point_first < 64; q++)
                CHECK(!span_equal(batch->points[p].metric, batch->points[q].metric));
        }
        sum += (double)row->time_ns;
    }
    CHECK(reject_count == batch->reject_count);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct payload_decoder *decoder;
    static const struct payload_rules rules = {
        .time_names = {{(const uint8_t *)"ts", 2}, {(const uint8_t *)"time", 4}}, .time_name_count = 2, .future_bound_ns = 1000000000};
    struct payload_batch batch;
    struct payload_ignored ignored = {0};
    if (!decoder)
        decoder = payload_new(&rules);
    CHECK(decoder);
    enum reject first = payload_decode(decoder, &batch, &ignored, span_of(data, size), 1700000000000000000);
    double sum = first == REJECT_NONE ? look(&batch) : 0;
    enum reject again = payload_decode(decoder, &batch, &ignored, span_of(data, size), 1700000000000000000);
    CHECK(first == again);
    CHECK(first != REJECT_NONE || look(&batch) == sum);
    return 0;
}
