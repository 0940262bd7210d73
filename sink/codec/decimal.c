/* Layout: one byte of flags (bit 0 float32, bit 1 corrected, bit 2 exceptions; the others 0), one byte of exponent, zigzag varint base,
 * varint divisor; with exceptions: varint count, then for each a varint (distance to the one before, - 1) and 8 bytes; with corrections:
 * varint size and that many bytes of integers; then the integers: (integer - base) / divisor.
 *
 * Choosing e: a sample of values gives the least exponent that suits each of them; the greatest of those is the first guess. One pass over
 * all values lists who does not fit; whether to raise e (3.3 bits for every value) or to keep them as exceptions (about 9 bytes for each)
 * is decided by cost. */
#include "sink/codec/decimal.h"

#include "common/check.h"

#define FLAG_FLOAT32 1
#define FLAG_CORRECTED 2
#define FLAG_EXCEPTIONS 4

#define SAMPLE_COUNT 32
#define CORRECTION_SAMPLE_MAX 8      /* units in the last place that a sampled value may be off */
#define CORRECTION_MAX ((int64_t)64) /* and any value, before it is an exception */
#define EXCEPTION_BITS 72
#define FLOAT32_EXPONENT_MAX 9

static const double power_of_10[DECIMAL_EXPONENT_MAX + 1] = {1e0, 1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,
                                                             1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17};

#define ROUND_MAGIC 0x1.8p52 /* adding and subtracting it rounds to an integer, for |x| < 2^51 */
#define INTEGER_MAX 0x1p51

static inline int64_t bits_of(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double double_of(int64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The nearest integer to value * 10^e as a double; false when it is out of range (NaN included). */
static inline bool to_integer(double *integer_out, double value, double power)
{
    double scaled = value * power;
    if (!(scaled > -INTEGER_MAX && scaled < INTEGER_MAX))
        return false;
    *integer_out = (scaled + ROUND_MAGIC) - ROUND_MAGIC; /* never -0.0, which no integer is */
    return true;
}

static inline double from_integer(double integer, double power, bool float32)
{
    double value = integer / power;
    return float32 ? (double)(float)value : value;
}

struct form {
    unsigned exponent;
    bool float32;
    bool corrected;
};

/* Whether value is an integer of this form, with a correction of at most `limit`. */
static inline bool form_fits(const struct form *form, double *integer_out, int64_t *correction_out, double value, int64_t limit)
{
    double power = power_of_10[form->exponent];
    if (!to_integer(integer_out, value, power))
        return false;
    int64_t off = (int64_t)((uint64_t)bits_of(value) - (uint64_t)bits_of(from_integer(*integer_out, power, form->float32)));
    *correction_out = off;
    return off >= -limit && off <= limit;
}

/* The least exponent from `from` on at which the value fits, or -1. */
static int least_exponent(struct form form, double value, unsigned from, unsigned exponent_max, int64_t limit)
{
    double integer;
    int64_t correction;
    for (form.exponent = from; form.exponent <= exponent_max; form.exponent++)
        if (form_fits(&form, &integer, &correction, value, limit))
            return (int)form.exponent;
    return -1;
}

/* Look at a sample: the exponent that suits (nearly) all of it in this form. Returns false when more than a quarter fits at none. */
static bool form_sample(struct form *form, const double *values, size_t count, unsigned exponent_max, int64_t limit)
{
    size_t step = count / SAMPLE_COUNT ? count / SAMPLE_COUNT : 1, seen = 0, unfit = 0;
    unsigned greatest = 0;
    for (size_t i = 0; i < count && seen < SAMPLE_COUNT; i += step, seen++) {
        double integer;
        int64_t correction;
        form->exponent = greatest; /* most values fit where the ones before did */
        if (form_fits(form, &integer, &correction, values[i], limit))
            continue;
        int exponent = least_exponent(*form, values[i], greatest + 1, exponent_max, limit);
        if (exponent < 0)
            unfit++;
        else
            greatest = (unsigned)exponent;
    }
    form->exponent = greatest;
    return unfit * 4 <= seen;
}

/* Find the form. Returns false when the values are no decimals. */
static bool form_choose(struct form *form, const double *values, size_t count)
{
    *form = (struct form){0};
    bool decimal = form_sample(form, values, count, DECIMAL_EXPONENT_MAX, 0);
    if (decimal && form->exponent <= FLOAT32_EXPONENT_MAX)
        return true;
    struct form float32 = {.float32 = true, .corrected = true};
    if (form_sample(&float32, values, count, FLOAT32_EXPONENT_MAX, CORRECTION_SAMPLE_MAX)) {
        *form = float32;
        return true;
    }
    struct form corrected = {.corrected = true};
    if (form_sample(&corrected, values, count, 12, CORRECTION_SAMPLE_MAX)) {
        *form = corrected;
        return true;
    }
    return decimal;
}

/* Convert all values; lists the positions that do not fit. */
static size_t form_apply(const struct form *form, struct decimal_scratch *s, bool *any_correction_out, const double *values, size_t count)
{
    int64_t limit = form->corrected ? CORRECTION_MAX : 0, previous = 0, all = 0;
    size_t exception_count = 0;
    for (size_t i = 0; i < count; i++) {
        double integer = 0;
        int64_t correction = 0;
        if (form_fits(form, &integer, &correction, values[i], limit)) {
            previous = (int64_t)integer;
        } else {
            s->exceptions[exception_count++] = (uint16_t)i;
            correction = 0;
        }
        s->integers[i] = previous;
        s->corrections[i] = correction;
        all |= correction;
    }
    *any_correction_out = all != 0;
    return exception_count;
}

/* Whether a greater exponent for all is cheaper than the exceptions; then form->exponent is raised. */
static bool form_raise(struct form *form, const struct decimal_scratch *s, size_t exception_count, const double *values, size_t count)
{
    size_t need[DECIMAL_EXPONENT_MAX + 1] = {0};
    unsigned exponent_max = form->float32 ? FLOAT32_EXPONENT_MAX : form->corrected ? 12 : DECIMAL_EXPONENT_MAX;
    for (size_t i = 0; i < exception_count; i++) {
        int exponent =
            least_exponent(*form, values[s->exceptions[i]], form->exponent + 1, exponent_max, form->corrected ? CORRECTION_MAX : 0);
        if (exponent >= 0)
            need[exponent]++;
    }
    double cost_best = (double)exception_count * EXCEPTION_BITS;
    unsigned best = form->exponent;
    size_t rest = exception_count;
    for (unsigned e = form->exponent + 1; e <= exponent_max; e++) {
        rest -= need[e];
        double cost = (double)rest * EXCEPTION_BITS + (double)(e - form->exponent) * 3.32 * (double)count;
        if (need[e] && cost < cost_best) {
            cost_best = cost;
            best = e;
        }
    }
    bool raised = best != form->exponent;
    form->exponent = best;
    return raised;
}

static size_t exceptions_write(uint8_t *out, size_t size, const uint16_t *positions, size_t exception_count, const double *values)
{
    if (size < VARINT_SIZE_MAX + exception_count * (8 + 3))
        return 0;
    size_t at = varint_put(out, exception_count);
    size_t next = 0;
    for (size_t i = 0; i < exception_count; i++) {
        at += varint_put(out + at, positions[i] - next);
        next = (size_t)positions[i] + 1;
        store_le64(out + at, (uint64_t)bits_of(values[positions[i]]));
        at += 8;
    }
    return at;
}

size_t decimal_encode(struct decimal_scratch *s, uint8_t *out, size_t size, uint64_t *span_out, const double *values, size_t count,
                      bool dense)
{
    struct form form;
    if (!form_choose(&form, values, count))
        return 0;
    bool any_correction;
    size_t exception_count = form_apply(&form, s, &any_correction, values, count);
    if (exception_count && form_raise(&form, s, exception_count, values, count))
        exception_count = form_apply(&form, s, &any_correction, values, count);
    if (exception_count * 4 > count || size < 64)
        return 0;
    if (exception_count && s->exceptions[0] == 0) {
        /* Nothing came before the first integer that fits: begin with it, so that no jump is coded. */
        size_t first = 0;
        while (first < exception_count && s->exceptions[first] == first)
            first++;
        for (size_t i = 0; i < first && first < count; i++)
            s->integers[i] = s->integers[first];
    }

    uint64_t divisor = integers_common_divisor(s->integers, count);
    int64_t base = s->integers[0], lowest = 0, highest = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t scaled = s->integers[i] - base; /* |integer| < 2^51 */
        if (divisor != 1)
            scaled /= (int64_t)divisor;
        s->integers[i] = scaled;
        lowest = scaled < lowest ? scaled : lowest;
        highest = scaled > highest ? scaled : highest;
    }
    if (span_out)
        *span_out = (uint64_t)(highest - lowest) + 1;

    out[0] = (uint8_t)((form.float32 ? FLAG_FLOAT32 : 0) | (any_correction ? FLAG_CORRECTED : 0) | (exception_count ? FLAG_EXCEPTIONS : 0));
    out[1] = (uint8_t)form.exponent;
    size_t at = 2;
    at += varint_put(out + at, zigzag_encode(base));
    at += varint_put(out + at, divisor);
    if (exception_count) {
        size_t used = exceptions_write(out + at, size - at, s->exceptions, exception_count, values);
        if (used == 0)
            return 0;
        at += used;
    }
    if (any_correction) {
        if (size - at < 4)
            return 0;
        size_t used = integers_encode(&s->coder, out + at + 3, size - at - 3, s->corrections, count, dense);
        if (used == 0)
            return 0;
        /* Three bytes hold any size here; written as a varint of fixed length. */
        out[at] = (uint8_t)(0x80 | (used & 0x7f));
        out[at + 1] = (uint8_t)(0x80 | (used >> 7 & 0x7f));
        out[at + 2] = (uint8_t)(used >> 14 & 0x7f);
        at += 3 + used;
    }
    size_t used = integers_encode(&s->coder, out + at, size - at, s->integers, count, dense);
    return used ? at + used : 0;
}

/* Read the exceptions twice: once to skip them, once to apply them. values NULL: skip. Returns the end, or NULL when they do not hold. */
static const uint8_t *exceptions_read(double *values, size_t count, const uint8_t *at, const uint8_t *end)
{
    uint64_t exception_count, gap;
    size_t used = varint_get(&exception_count, at, end), next = 0;
    if (used == 0 || exception_count > count)
        return NULL;
    at += used;
    for (uint64_t i = 0; i < exception_count; i++) {
        used = varint_get(&gap, at, end);
        if (used == 0 || gap >= count - next || (size_t)(end - at) < used + 8)
            return NULL;
        if (values)
            values[next + gap] = double_of((int64_t)load_le64(at + used));
        next += (size_t)gap + 1;
        at += used + 8;
    }
    return at;
}

enum err decimal_decode(double *values_out, int64_t *integers, size_t count, struct span bytes)
{
    const uint8_t *at = bytes.data, *end = bytes.data + bytes.size;
    if (bytes.size < 4)
        return ERR_CORRUPT;
    unsigned flags = at[0], exponent = at[1];
    if (flags & ~(unsigned)(FLAG_FLOAT32 | FLAG_CORRECTED | FLAG_EXCEPTIONS) || exponent > DECIMAL_EXPONENT_MAX)
        return ERR_VERSION;
    at += 2;
    uint64_t base, divisor, corrections_size = 0;
    size_t used = varint_get(&base, at, end);
    if (used == 0)
        return ERR_CORRUPT;
    at += used;
    used = varint_get(&divisor, at, end);
    if (used == 0)
        return ERR_CORRUPT;
    at += used;
    const uint8_t *exceptions = at;
    if (flags & FLAG_EXCEPTIONS && !(at = exceptions_read(NULL, count, at, end)))
        return ERR_CORRUPT;
    const uint8_t *corrections = NULL;
    if (flags & FLAG_CORRECTED) {
        used = varint_get(&corrections_size, at, end);
        if (used == 0 || corrections_size > (size_t)(end - at) - used)
            return ERR_CORRUPT;
        corrections = at + used;
        at = corrections + corrections_size;
    }
    enum err err = integers_decode(integers, count, span_of(at, (size_t)(end - at)));
    if (err)
        return err;
    int64_t base_value = zigzag_decode(base);
    double power = power_of_10[exponent];
    bool float32 = flags & FLAG_FLOAT32;
    for (size_t i = 0; i < count; i++) {
        int64_t integer = (int64_t)((uint64_t)base_value + (uint64_t)integers[i] * divisor);
        values_out[i] = from_integer((double)integer, power, float32);
    }
    if (corrections) {
        err = integers_decode(integers, count, span_of(corrections, (size_t)corrections_size));
        if (err)
            return err;
        for (size_t i = 0; i < count; i++)
            values_out[i] = double_of((int64_t)((uint64_t)bits_of(values_out[i]) + (uint64_t)integers[i]));
    }
    if (flags & FLAG_EXCEPTIONS)
        (void)exceptions_read(values_out, count, exceptions, end);
    return ERR_OK;
}
