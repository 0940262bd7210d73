/* Layout: varint divisor, zigzag varint first time, then the integers ((time - first) / divisor). */
#include "sink/codec/timestamps.h"

#include "common/check.h"

size_t timestamps_encode(struct timestamps_scratch *scratch, uint8_t *out, const int64_t *times, size_t count, bool dense)
{
    uint64_t divisor = integers_common_divisor(times, count);
    int64_t lowest = times[0], highest = times[0];
    for (size_t i = 0; i < count; i++) {
        lowest = times[i] < lowest ? times[i] : lowest;
        highest = times[i] > highest ? times[i] : highest;
    }
    if ((uint64_t)highest - (uint64_t)lowest > INT64_MAX)
        divisor = 1;
    for (size_t i = 0; i < count; i++) {
        int64_t from_first = (int64_t)((uint64_t)times[i] - (uint64_t)times[0]);
        scratch->scaled[i] = divisor == 1 ? from_first : from_first / (int64_t)divisor;
    }
    size_t at = varint_put(out, divisor);
    at += varint_put(out + at, zigzag_encode(times[0]));
    size_t size = integers_encode(&scratch->integers, out + at, timestamps_size_max(count) - at, scratch->scaled, count, dense);
    CHECK(size > 0); /* bit packing always fits */
    return at + size;
}

enum err timestamps_decode(int64_t *times_out, size_t count, struct span bytes)
{
    const uint8_t *at = bytes.data, *end = bytes.data + bytes.size;
    uint64_t divisor, first;
    size_t used = varint_get(&divisor, at, end);
    if (used == 0 || divisor == 0)
        return ERR_CORRUPT;
    at += used;
    used = varint_get(&first, at, end);
    if (used == 0)
        return ERR_CORRUPT;
    at += used;
    enum err err = integers_decode(times_out, count, span_of(at, (size_t)(end - at)));
    if (err)
        return err;
    uint64_t base = (uint64_t)zigzag_decode(first);
    for (size_t i = 0; i < count; i++)
        times_out[i] = (int64_t)(base + (uint64_t)times_out[i] * divisor);
    return ERR_OK;
}
