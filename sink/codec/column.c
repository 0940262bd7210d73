/* Layout: one byte (codec in bits 0..4; bit 7: a presence part follows; bits 5 and 6 zero); presence: one byte 0 and varint runs, present
 * first and in turn, that sum up to the rows, or one byte 1 and a bitmap of whole bytes; then the codec's bytes.
 *
 * The chooser is cheap by order: constants cost one comparison a value; decimals decide on a sample whether they are worth a pass; the
 * dictionary gives up at the first value too many; Gorilla is asked only when decimals failed or came out large. */
#include "sink/codec/column.h"

#include <stdlib.h>

#include "common/check.h"
#include "sink/codec/decimal.h"
#include "sink/codec/dictionary.h"
#include "sink/codec/gorilla.h"

enum codec {
    CODEC_RAW,
    CODEC_CONSTANT,
    CODEC_GORILLA,
    CODEC_DECIMAL,
    CODEC_DICTIONARY,
    CODEC_NOTHING /* no row has a value */,
    CODEC_COUNT
};

#define CODEC_MASK 0x1f
#define FLAG_PRESENCE 0x80

struct column_scratch {
    double values[COLUMN_ROWS_MAX];
    struct decimal_scratch decimal;
    struct dictionary dictionary;
    uint8_t trial[2][64 + COLUMN_ROWS_MAX * 9];
};

_Static_assert(COLUMN_ROWS_MAX <= INTEGERS_COUNT_MAX, "a column is one sequence of integers");

struct column_scratch *column_scratch_new(void) { return malloc(sizeof(struct column_scratch)); }
void column_scratch_free(struct column_scratch *scratch) { free(scratch); }

static inline bool bitmap_bit(const uint64_t *bitmap, size_t i) { return bitmap[i / 64] >> (i % 64) & 1; }

/* ---- presence ---- */

static size_t presence_write(uint8_t *out, const uint64_t *present, size_t row_count)
{
    size_t bitmap_size = (row_count + 7) / 8, at = 1, run = 0;
    bool expect = true;
    out[0] = 0;
    for (size_t i = 0; i < row_count; i++) {
        if (bitmap_bit(present, i) == expect) {
            run++;
            continue;
        }
        if (at + 4 > bitmap_size)
            break;
        at += varint_put(out + at, run);
        expect = !expect;
        run = 1;
    }
    if (at + 4 <= bitmap_size || bitmap_size < 4) {
        /* A tiny bitmap is never worth runs. */
        if (bitmap_size >= 4)
            return at + varint_put(out + at, run);
    }
    out[0] = 1;
    memset(out + 1, 0, bitmap_size);
    for (size_t i = 0; i < row_count; i++)
        out[1 + i / 8] |= (uint8_t)(bitmap_bit(present, i) << (i % 8));
    return 1 + bitmap_size;
}

/* Returns the end, NULL when it does not hold. */
static const uint8_t *presence_read(uint64_t *present_out, size_t *count_out, size_t row_count, const uint8_t *at, const uint8_t *end)
{
    size_t words = (row_count + 63) / 64, bitmap_size = (row_count + 7) / 8, count = 0;
    memset(present_out, 0, words * sizeof *present_out);
    if (at == end || *at > 1)
        return NULL;
    if (*at++ == 1) {
        if ((size_t)(end - at) < bitmap_size)
            return NULL;
        for (size_t i = 0; i < bitmap_size; i++)
            present_out[i / 8] |= (uint64_t)at[i] << (i % 8 * 8);
        if (row_count % 64 && present_out[words - 1] >> (row_count % 64))
            return NULL;
        at += bitmap_size;
    } else {
        bool set = true;
        for (size_t row = 0; row < row_count; set = !set) {
            uint64_t run;
            size_t used = varint_get(&run, at, end);
            if (used == 0 || run > row_count - row || (run == 0 && row > 0))
                return NULL;
            at += used;
            for (size_t i = 0; set && i < run; i++)
                present_out[(row + i) / 64] |= (uint64_t)1 << ((row + i) % 64);
            row += (size_t)run;
        }
    }
    for (size_t i = 0; i < words; i++)
        count += (size_t)__builtin_popcountll(present_out[i]);
    *count_out = count;
    return at;
}

/* ---- encode ---- */

static bool all_equal(const double *values, size_t count)
{
    uint64_t first, different = 0;
    memcpy(&first, &values[0], sizeof first);
    for (size_t i = 1; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        different |= bits ^ first;
        if (different)
            return false;
    }
    return true;
}

static size_t raw_write(uint8_t *out, const double *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        store_le64(out + i * 8, bits);
    }
    return count * 8;
}

/* Encode present values only into out (room for count * 8 bytes); the codec through codec_out. */
static size_t values_encode(struct column_scratch *s, uint8_t *out, enum codec *codec_out, const double *values, size_t count,
                            enum column_effort effort)
{
    if (effort != COLUMN_GORILLA && all_equal(values, count)) {
        *codec_out = CODEC_CONSTANT;
        return raw_write(out, values, 1);
    }
    size_t room = count * 8, best = room; /* raw is the bound */
    const uint8_t *best_bytes = NULL;
    *codec_out = CODEC_RAW;
    uint64_t steps = UINT64_MAX;
    bool dense = effort == COLUMN_DENSE;
    if (effort != COLUMN_GORILLA) {
        size_t size = decimal_encode(&s->decimal, s->trial[0], sizeof s->trial[0], &steps, values, count, dense);
        if (size && size < best) {
            best = size;
            best_bytes = s->trial[0];
            *codec_out = CODEC_DECIMAL;
        }
        /* Not worth a table: a range of steps that is nearly full, or a column that is small already. */
        size_t distinct_max = count / 4 < DICTIONARY_VALUES_MAX ? count / 4 : DICTIONARY_VALUES_MAX;
        if (distinct_max >= 2 && best > 24 && dictionary_build(&s->dictionary, distinct_max, values, count) &&
            steps / 2 > s->dictionary.count) {
            size = dictionary_encode(&s->dictionary, &s->decimal, s->trial[1], sizeof s->trial[1], count, dense);
            if (size && size < best) {
                best = size;
                best_bytes = s->trial[1];
                *codec_out = CODEC_DICTIONARY;
            }
        }
    }
    if (effort == COLUMN_GORILLA || best > count * 3) {
        size_t bits = gorilla_cost_bits(values, count);
        if ((bits + 7) / 8 < best) {
            uint8_t *trial = best_bytes == s->trial[0] ? s->trial[1] : s->trial[0];
            size_t size = gorilla_encode(trial, sizeof s->trial[0], values, count);
            CHECK(size == (bits + 7) / 8);
            best = size;
            best_bytes = trial;
            *codec_out = CODEC_GORILLA;
        }
    }
    if (best_bytes)
        memcpy(out, best_bytes, best);
    else
        best = raw_write(out, values, count);
    return best;
}

size_t column_encode(struct column_scratch *s, uint8_t *out, const double *values, const uint64_t *present, size_t row_count,
                     enum column_effort effort)
{
    CHECK(row_count >= 1);
    CHECK(row_count <= COLUMN_ROWS_MAX);
    size_t count = 0, at = 1;
    if (present) {
        for (size_t i = 0; i < row_count; i++) {
            s->values[count] = values[i];
            count += bitmap_bit(present, i);
        }
        if (count == 0) {
            out[0] = CODEC_NOTHING;
            return 1;
        }
        values = s->values;
    }
    uint8_t flags = 0;
    if (present && count < row_count) {
        at += presence_write(out + at, present, row_count);
        flags = FLAG_PRESENCE;
    } else {
        count = row_count;
    }
    enum codec codec;
    at += values_encode(s, out + at, &codec, values, count, effort);
    out[0] = (uint8_t)(flags | codec);
    return at;
}

/* ---- decode ---- */

static enum err values_decode(struct column_scratch *s, double *values_out, size_t count, enum codec codec, struct span bytes)
{
    uint64_t bits;
    switch (codec) {
    case CODEC_RAW:
        if (bytes.size != count * 8)
            return ERR_CORRUPT;
        for (size_t i = 0; i < count; i++) {
            bits = load_le64(bytes.data + i * 8);
            memcpy(&values_out[i], &bits, sizeof bits);
        }
        return ERR_OK;
    case CODEC_CONSTANT:
        if (bytes.size != 8)
            return ERR_CORRUPT;
        bits = load_le64(bytes.data);
        for (size_t i = 0; i < count; i++)
            memcpy(&values_out[i], &bits, sizeof bits);
        return ERR_OK;
    case CODEC_GORILLA:
        return gorilla_decode(values_out, count, bytes);
    case CODEC_DECIMAL:
        return decimal_decode(values_out, s->decimal.integers, count, bytes);
    case CODEC_DICTIONARY:
        return dictionary_decode(values_out, s->decimal.integers, count, bytes);
    case CODEC_NOTHING:
    case CODEC_COUNT:
        break;
    }
    return ERR_VERSION;
}

enum err column_decode(struct column_scratch *s, double *values_out, uint64_t *present_out, size_t row_count, struct span bytes)
{
    CHECK(row_count >= 1);
    CHECK(row_count <= COLUMN_ROWS_MAX);
    const uint8_t *at = bytes.data, *end = bytes.data + bytes.size;
    if (at == end)
        return ERR_CORRUPT;
    unsigned head = *at++;
    size_t words = (row_count + 63) / 64;
    if (head == CODEC_NOTHING) {
        memset(present_out, 0, words * sizeof *present_out);
        memset(values_out, 0, row_count * sizeof *values_out);
        return at == end ? ERR_OK : ERR_CORRUPT;
    }
    if (head & ~(unsigned)(FLAG_PRESENCE | CODEC_MASK) || (head & CODEC_MASK) >= CODEC_NOTHING)
        return ERR_VERSION;
    enum codec codec = (enum codec)(head & CODEC_MASK);
    if (!(head & FLAG_PRESENCE)) {
        memset(present_out, 0xff, words * sizeof *present_out);
        if (row_count % 64)
            present_out[words - 1] = ((uint64_t)1 << (row_count % 64)) - 1;
        return values_decode(s, values_out, row_count, codec, span_of(at, (size_t)(end - at)));
    }
    size_t count;
    at = presence_read(present_out, &count, row_count, at, end);
    if (!at || count == 0 || count == row_count)
        return ERR_CORRUPT;
    enum err err = values_decode(s, s->values, count, codec, span_of(at, (size_t)(end - at)));
    if (err)
        return err;
    const double *from = s->values;
    for (size_t i = 0; i < row_count; i++)
        values_out[i] = bitmap_bit(present_out, i) ? *from++ : 0;
    return ERR_OK;
}

const char *column_codec_name(struct span bytes)
{
    static const char *const names[CODEC_COUNT] = {"raw", "constant", "gorilla", "decimal", "dictionary", "nothing"};
    unsigned codec = bytes.size ? bytes.data[0] & CODEC_MASK : CODEC_COUNT;
    return codec < CODEC_COUNT ? names[codec] : "unknown";
}
