/* Layout: one byte (predictor in bits 0..2, packer in bits 3..5, bits 6..7 zero), the predictor's parameters as zigzag varints, then the
 * packer's bytes.
 *
 * Why blocks of 128: a telemetry column changes its noise with time; a byte of parameters a block costs 1/16 bit a value, and following the
 * noise gains more. Why the range coder is only the second packer: it codes every value in three to eight adaptive binary decisions, about
 * five times the time of a Rice code; compaction can afford this, a query of fresh data rather not. */
#include "sink/codec/integers.h"

#include "sink/codec/bitstream.h"
#include "sink/codec/range_coder.h"

enum predictor { PREDICT_LEAST, PREDICT_CENTRE, PREDICT_DELTA, PREDICT_DELTA2, PREDICTOR_COUNT };
enum packer { PACK_BLOCKS, PACK_RANGE, PACK_NOTHING /* all residuals are 0 */, PACKER_COUNT };

/* Kinds of block, in the upper two bits of its first byte; the lower six are the parameter. */
enum block_kind { BLOCK_RICE, BLOCK_ZERO_RUN, BLOCK_PACKED, BLOCK_PACKED_64 };

#define RICE_QUOTIENT_MAX 24 /* from here on: escape, 6 bits of length - 1, the value */
#define RICE_PARAM_MAX 56

/* ---- predictors ---- */

uint64_t integers_common_divisor(const int64_t *values, size_t count)
{
    uint64_t divisor = 0, last = 0;
    for (size_t i = 1; i < count && divisor != 1; i++) {
        /* Modulo 2^64; the magnitude of the difference. */
        uint64_t difference = (uint64_t)values[i] - (uint64_t)values[i - 1];
        if ((int64_t)difference < 0)
            difference = -difference;
        if (difference == last || (divisor && difference % divisor == 0))
            continue;
        last = difference;
        uint64_t a = divisor, b = difference;
        while (b) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        divisor = a;
    }
    /* A difference beyond the int64 range cannot be divided as a signed number: then there is none. */
    return divisor == 0 || divisor > INT64_MAX ? 1 : divisor;
}

static void predict(uint64_t *residuals, int64_t params[2], enum predictor predictor, const int64_t *values, size_t count)
{
    const uint64_t *v = (const uint64_t *)values; /* modulo 2^64 */
    switch (predictor) {
    case PREDICT_LEAST: {
        int64_t least = values[0];
        for (size_t i = 1; i < count; i++)
            least = values[i] < least ? values[i] : least;
        for (size_t i = 0; i < count; i++)
            residuals[i] = v[i] - (uint64_t)least;
        params[0] = least;
        return;
    }
    case PREDICT_CENTRE: {
        int64_t base = values[0]; /* the mean of differences to the first, which cannot overflow for sane data */
        double sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += (double)values[i] - (double)base;
        double mean = (double)base + sum / (double)count;
        int64_t centre = mean >= -9e18 && mean <= 9e18 ? (int64_t)mean : 0;
        for (size_t i = 0; i < count; i++)
            residuals[i] = zigzag_encode((int64_t)(v[i] - (uint64_t)centre));
        params[0] = centre;
        return;
    }
    case PREDICT_DELTA:
        residuals[0] = 0;
        for (size_t i = 1; i < count; i++)
            residuals[i] = zigzag_encode((int64_t)(v[i] - v[i - 1]));
        params[0] = values[0];
        return;
    case PREDICT_DELTA2:
        residuals[0] = 0;
        params[0] = values[0];
        params[1] = count > 1 ? (int64_t)(v[1] - v[0]) : 0;
        if (count > 1)
            residuals[1] = 0;
        for (size_t i = 2; i < count; i++)
            residuals[i] = zigzag_encode((int64_t)(v[i] - 2 * v[i - 1] + v[i - 2]));
        return;
    case PREDICTOR_COUNT:
        break;
    }
}

/* In place: residuals become values. */
static void unpredict(int64_t *values, enum predictor predictor, const int64_t params[2], size_t count)
{
    uint64_t *v = (uint64_t *)values;
    uint64_t a = (uint64_t)params[0], d = (uint64_t)params[1];
    switch (predictor) {
    case PREDICT_LEAST:
        for (size_t i = 0; i < count; i++)
            v[i] += a;
        return;
    case PREDICT_CENTRE:
        for (size_t i = 0; i < count; i++)
            v[i] = (uint64_t)zigzag_decode(v[i]) + a;
        return;
    case PREDICT_DELTA:
        for (size_t i = 0; i < count; i++) {
            a += (uint64_t)zigzag_decode(v[i]);
            v[i] = a;
        }
        return;
    case PREDICT_DELTA2:
        if (count > 0)
            v[0] = a;
        for (size_t i = 1; i < count; i++) {
            d += (uint64_t)zigzag_decode(v[i]);
            a += d;
            v[i] = a;
        }
        return;
    case PREDICTOR_COUNT:
        break;
    }
}

static size_t predictor_param_count(enum predictor predictor) { return predictor == PREDICT_DELTA2 ? 2 : 1; }

/* ---- blocks ---- */

static inline unsigned bit_length(uint64_t value) { return value ? 64 - (unsigned)__builtin_clzll(value) : 0; }

/* Size in bits of one Rice code. */
static inline size_t rice_bits(uint64_t value, unsigned k)
{
    uint64_t quotient = value >> k;
    return quotient < RICE_QUOTIENT_MAX ? (size_t)quotient + 1 + k : RICE_QUOTIENT_MAX + 1 + 6 + bit_length(value);
}

static inline void rice_put(struct bit_writer *w, uint64_t value, unsigned k)
{
    uint64_t quotient = value >> k;
    if (quotient < RICE_QUOTIENT_MAX) {
        unsigned unary = (unsigned)quotient;
        bit_writer_put(w, (uint64_t)1 << unary, unary + 1);
        bit_writer_put(w, value & (((uint64_t)1 << k) - 1), k);
        return;
    }
    unsigned length = bit_length(value);
    bit_writer_put(w, (uint64_t)1 << RICE_QUOTIENT_MAX, RICE_QUOTIENT_MAX + 1);
    bit_writer_put(w, length - 1, 6);
    bit_writer_put(w, value, length);
}

static inline uint64_t rice_get(struct bit_reader *r, unsigned k)
{
    unsigned quotient = bit_reader_get_unary(r, RICE_QUOTIENT_MAX);
    if (quotient < RICE_QUOTIENT_MAX)
        return (uint64_t)quotient << k | bit_reader_get(r, k);
    unsigned length = (unsigned)bit_reader_get(r, 6) + 1;
    return bit_reader_get_wide(r, length);
}

struct block_plan {
    enum block_kind kind;
    unsigned param;
    size_t bits;
};

static size_t rice_block_bits(const uint64_t *values, size_t count, unsigned k)
{
    size_t bits = 0;
    for (size_t i = 0; i < count; i++)
        bits += rice_bits(values[i], k);
    return bits;
}

/* Zero runs: the length of the run before each nonzero value as a Rice code with k = 0..3 (in the two upper bits of the parameter), then
 * the value - 1 with k = 0..15; a last run that reaches the end of the block is written as its length alone. */
static size_t zero_run_bits(const uint64_t *values, size_t count, unsigned run_k, unsigned k)
{
    size_t bits = 0, run = 0;
    for (size_t i = 0; i < count; i++) {
        if (values[i] == 0) {
            run++;
            continue;
        }
        bits += rice_bits(run, run_k) + rice_bits(values[i] - 1, k);
        run = 0;
    }
    return run ? bits + rice_bits(run, run_k) : bits;
}

static unsigned rice_param_of(uint64_t sum, size_t count)
{
    uint64_t mean = sum / count;
    unsigned k = bit_length(mean);
    return k > RICE_PARAM_MAX ? RICE_PARAM_MAX : k;
}

static struct block_plan block_choose(const uint64_t *values, size_t count)
{
    uint64_t all = 0, sum = 0;
    size_t zero_count = 0;
    for (size_t i = 0; i < count; i++) {
        all |= values[i];
        sum += values[i] >> 7; /* cannot overflow; the low bits are added below when they matter */
        zero_count += values[i] == 0;
    }
    unsigned width = bit_length(all);
    struct block_plan best = {width == 64 ? BLOCK_PACKED_64 : BLOCK_PACKED, width == 64 ? 0 : width, width * count};
    if (width == 0)
        return best;
    if (width <= 56) {
        sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += values[i];
    } else {
        sum = sum > UINT64_MAX >> 7 ? UINT64_MAX : sum << 7;
    }
    unsigned k_high = rice_param_of(sum, count);
    for (unsigned k = k_high >= 2 ? k_high - 2 : 0; k <= k_high && k <= RICE_PARAM_MAX; k++) {
        size_t bits = rice_block_bits(values, count, k);
        if (bits < best.bits)
            best = (struct block_plan){BLOCK_RICE, k, bits};
    }
    if (zero_count * 3 > count) {
        size_t others = count - zero_count;
        unsigned run_k = rice_param_of(zero_count, others + 1);
        unsigned k = rice_param_of(sum > others ? sum - others : 0, others);
        run_k = run_k / 2 > 3 ? 3 : run_k / 2;
        for (unsigned rk = run_k ? run_k - 1 : 0; rk <= run_k; rk++)
            for (unsigned vk = k ? k - 1 : 0; vk <= k && vk <= 15; vk++) {
                size_t bits = zero_run_bits(values, count, rk * 2, vk);
                if (bits < best.bits)
                    best = (struct block_plan){BLOCK_ZERO_RUN, rk << 4 | vk, bits};
            }
    }
    return best;
}

static void block_write(struct bit_writer *w, const uint64_t *values, size_t count, struct block_plan plan)
{
    bit_writer_put(w, (uint64_t)plan.kind << 6 | plan.param, 8);
    switch (plan.kind) {
    case BLOCK_RICE:
        for (size_t i = 0; i < count; i++)
            rice_put(w, values[i], plan.param);
        return;
    case BLOCK_ZERO_RUN: {
        size_t run = 0;
        for (size_t i = 0; i < count; i++) {
            if (values[i] == 0) {
                run++;
                continue;
            }
            rice_put(w, run, plan.param >> 4 << 1);
            rice_put(w, values[i] - 1, plan.param & 15);
            run = 0;
        }
        if (run)
            rice_put(w, run, plan.param >> 4 << 1);
        return;
    }
    case BLOCK_PACKED:
    case BLOCK_PACKED_64:
        for (size_t i = 0; i < count; i++)
            bit_writer_put(w, values[i], plan.kind == BLOCK_PACKED_64 ? 64 : plan.param);
        return;
    }
}

static enum err block_read(struct bit_reader *r, uint64_t *values_out, size_t count)
{
    unsigned head = (unsigned)bit_reader_get(r, 8), param = head & 63;
    switch ((enum block_kind)(head >> 6)) {
    case BLOCK_RICE:
        if (param > RICE_PARAM_MAX)
            return ERR_CORRUPT;
        for (size_t i = 0; i < count; i++)
            values_out[i] = rice_get(r, param);
        break;
    case BLOCK_ZERO_RUN:
        for (size_t i = 0; i < count;) {
            uint64_t run = rice_get(r, param >> 4 << 1);
            if (run > count - i)
                return ERR_CORRUPT;
            memset(values_out + i, 0, (size_t)run * sizeof *values_out);
            i += (size_t)run;
            if (i < count)
                values_out[i++] = rice_get(r, param & 15) + 1;
            if (r->overrun)
                return ERR_CORRUPT;
        }
        break;
    case BLOCK_PACKED:
        if (param == 0)
            memset(values_out, 0, count * sizeof *values_out);
        else
            for (size_t i = 0; i < count; i++)
                values_out[i] = bit_reader_get_wide(r, param);
        break;
    case BLOCK_PACKED_64:
        if (param)
            return ERR_CORRUPT;
        for (size_t i = 0; i < count; i++)
            values_out[i] = bit_reader_get_wide(r, 64);
        break;
    }
    return r->overrun ? ERR_CORRUPT : ERR_OK;
}

/* ---- range packer ---- */

/* Each residual as: zero or not (context: how long ago the last nonzero one was, and how large it was), the length of its magnitude
 * in bits (context: the lengths of the last two), its two bits below the leading one (context: the length), the rest as they are, and the
 * sign (context: the last two signs). */
struct residual_model {
    struct range_bit zero[16][4];
    struct range_bit length[18][64];
    struct range_bit mantissa[20][4];
    struct range_bit sign[9];
    unsigned run, length1, length2, sign1, sign2;
};

static void residual_model_init(struct residual_model *m)
{
    struct range_bit *all = (struct range_bit *)m;
    size_t count = offsetof(struct residual_model, run) / sizeof *all;
    for (size_t i = 0; i < count; i++)
        range_bit_init(&all[i]);
    m->run = m->length1 = m->length2 = m->sign1 = m->sign2 = 0;
}

static inline struct range_bit *model_zero(struct residual_model *m)
{
    unsigned size = m->length1 >= 6 ? 3 : m->length1 >> 1;
    return &m->zero[m->run < 15 ? m->run : 15][size];
}

static inline struct range_bit *model_length(struct residual_model *m)
{
    unsigned context = m->length1 + m->length2;
    return m->length[context < 17 ? context : 17];
}

static inline void model_update(struct residual_model *m, unsigned length, bool negative)
{
    m->run = length ? 0 : m->run + 1;
    m->length2 = m->length1;
    m->length1 = length;
    if (length) {
        m->sign2 = m->sign1;
        m->sign1 = negative ? 2 : 1;
    }
}

static void range_pack(struct range_encoder *enc, const uint64_t *residuals, size_t count, bool is_signed)
{
    struct residual_model m;
    residual_model_init(&m);
    for (size_t i = 0; i < count; i++) {
        uint64_t value = residuals[i];
        range_encode_bit(enc, model_zero(&m), value != 0);
        if (value == 0) {
            model_update(&m, 0, false);
            continue;
        }
        bool negative = is_signed && (value & 1);
        uint64_t magnitude = is_signed ? (value >> 1) + negative : value; /* zigzag: 1 -> 1, 2 -> 1, 3 -> 2, ... */
        unsigned length = bit_length(magnitude);                          /* 1..64 */
        range_encode_tree(enc, model_length(&m), length - 1, 6);
        unsigned below = length - 1;
        struct range_bit *mantissa = m.mantissa[length < 19 ? length : 19];
        if (below >= 1) {
            /* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): below is 1..63 */
            unsigned bit = magnitude >> (below - 1) & 1;
            range_encode_bit(enc, &mantissa[0], bit);
            if (below >= 2) {
                range_encode_bit(enc, &mantissa[1 + bit], magnitude >> (below - 2) & 1);
                range_encode_direct(enc, magnitude & (((uint64_t)1 << (below - 2)) - 1), below - 2);
            }
        }
        if (is_signed)
            range_encode_bit(enc, &m.sign[m.sign1 * 3 + m.sign2], negative);
        model_update(&m, length, negative);
    }
}

static void range_unpack(struct range_decoder *dec, uint64_t *residuals_out, size_t count, bool is_signed)
{
    struct residual_model m;
    residual_model_init(&m);
    for (size_t i = 0; i < count; i++) {
        if (!range_decode_bit(dec, model_zero(&m))) {
            residuals_out[i] = 0;
            model_update(&m, 0, false);
            continue;
        }
        unsigned length = range_decode_tree(dec, model_length(&m), 6) + 1;
        unsigned below = length - 1;
        uint64_t magnitude = 1;
        struct range_bit *mantissa = m.mantissa[length < 19 ? length : 19];
        if (below >= 1) {
            unsigned bit = range_decode_bit(dec, &mantissa[0]);
            magnitude = magnitude << 1 | bit;
            if (below >= 2) {
                magnitude = magnitude << 1 | range_decode_bit(dec, &mantissa[1 + bit]);
                if (below > 2)
                    magnitude = magnitude << (below - 2) | range_decode_direct(dec, below - 2);
            }
        }
        bool negative = is_signed && range_decode_bit(dec, &m.sign[m.sign1 * 3 + m.sign2]);
        residuals_out[i] = is_signed ? (magnitude << 1) - negative : magnitude;
        model_update(&m, length, negative);
    }
}

/* ---- the whole ---- */

static size_t blocks_bits(const uint64_t *residuals, size_t count, size_t give_up)
{
    size_t bits = 0;
    for (size_t at = 0; at < count && bits < give_up; at += INTEGERS_BLOCK) {
        size_t n = count - at < INTEGERS_BLOCK ? count - at : INTEGERS_BLOCK;
        bits += 8 + block_choose(residuals + at, n).bits;
    }
    return bits;
}

static bool all_zero(const uint64_t *residuals, size_t count)
{
    uint64_t all = 0;
    for (size_t i = 0; i < count; i++)
        all |= residuals[i];
    return all == 0;
}

size_t integers_encode(struct integers_scratch *scratch, uint8_t *out, size_t size, const int64_t *values, size_t count, bool dense)
{
    uint64_t *best = scratch->residuals[0], *other = scratch->residuals[1];
    enum predictor predictor = PREDICT_LEAST;
    int64_t params[2] = {0, 0};
    size_t bits_best = SIZE_MAX;
    for (enum predictor p = PREDICT_LEAST; p < PREDICTOR_COUNT; p++) {
        int64_t params_p[2] = {0, 0};
        predict(other, params_p, p, values, count);
        size_t bits = all_zero(other, count) ? 0 : blocks_bits(other, count, bits_best);
        if (bits >= bits_best)
            continue;
        bits_best = bits;
        predictor = p;
        memcpy(params, params_p, sizeof params);
        uint64_t *swap = best;
        best = other;
        other = swap;
    }
    uint8_t head[1 + 2 * VARINT_SIZE_MAX];
    size_t at = 1;
    for (size_t i = 0; i < predictor_param_count(predictor); i++)
        at += varint_put(head + at, zigzag_encode(params[i]));
    if (at > size)
        return 0;
    size_t body = 0;
    enum packer packer = PACK_BLOCKS;
    if (bits_best == 0) {
        out[0] = (uint8_t)(predictor | PACK_NOTHING << 3);
        memcpy(out + 1, head + 1, at - 1);
        return at;
    }
    if (dense) {
        struct range_encoder enc;
        range_encoder_init(&enc, out + at, size - at);
        range_pack(&enc, best, count, predictor != PREDICT_LEAST);
        body = range_encoder_finish(&enc);
        if (body && body * 8 < bits_best)
            packer = PACK_RANGE;
        else
            body = 0;
    }
    if (packer == PACK_BLOCKS) {
        struct bit_writer w;
        bit_writer_init(&w, out + at, size - at);
        for (size_t i = 0; i < count && !w.overflow; i += INTEGERS_BLOCK) {
            size_t n = count - i < INTEGERS_BLOCK ? count - i : INTEGERS_BLOCK;
            block_write(&w, best + i, n, block_choose(best + i, n));
        }
        body = bit_writer_finish(&w);
    }
    if (body == 0)
        return 0;
    head[0] = (uint8_t)(predictor | packer << 3);
    memcpy(out, head, at);
    return at + body;
}

enum err integers_decode(int64_t *values_out, size_t count, struct span bytes)
{
    const uint8_t *at = bytes.data, *end = bytes.data + bytes.size;
    if (at == end)
        return ERR_CORRUPT;
    unsigned predictor = *at & 7, packer = *at >> 3;
    at++;
    if (predictor >= PREDICTOR_COUNT || packer >= PACKER_COUNT)
        return ERR_VERSION;
    int64_t params[2] = {0, 0};
    for (size_t i = 0; i < predictor_param_count((enum predictor)predictor); i++) {
        uint64_t value;
        size_t used = varint_get(&value, at, end);
        if (used == 0)
            return ERR_CORRUPT;
        at += used;
        params[i] = zigzag_decode(value);
    }
    uint64_t *residuals = (uint64_t *)values_out;
    struct span body = span_of(at, (size_t)(end - at));
    if (packer == PACK_NOTHING) {
        if (body.size)
            return ERR_CORRUPT;
        memset(residuals, 0, count * sizeof *residuals);
    } else if (packer == PACK_RANGE) {
        struct range_decoder dec;
        range_decoder_init(&dec, body);
        range_unpack(&dec, residuals, count, predictor != PREDICT_LEAST);
        if (!range_decoder_is_done(&dec))
            return ERR_CORRUPT;
    } else {
        struct bit_reader r;
        bit_reader_init(&r, body);
        for (size_t i = 0; i < count; i += INTEGERS_BLOCK) {
            enum err err = block_read(&r, residuals + i, count - i < INTEGERS_BLOCK ? count - i : INTEGERS_BLOCK);
            if (err)
                return err;
        }
        if (!bit_reader_is_done(&r))
            return ERR_CORRUPT;
    }
    unpredict(values_out, (enum predictor)predictor, params, count);
    return ERR_OK;
}
