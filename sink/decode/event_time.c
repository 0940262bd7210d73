#include "sink/decode/event_time.h"

static bool is_digit(uint8_t c) { return c >= '0' && c <= '9'; }

/* A decimal number as mantissa * 10^exponent, exact up to 19 significant digits; further ones are dropped. */
struct decimal_text {
    uint64_t mantissa;
    int exponent;
    bool negative;
};

static bool decimal_parse(struct decimal_text *out, struct span text)
{
    size_t at = 0;
    bool any = false;
    *out = (struct decimal_text){0};
    if (at < text.size && (text.data[at] == '-' || text.data[at] == '+'))
        out->negative = text.data[at++] == '-';
    bool fraction = false;
    for (; at < text.size; at++) {
        uint8_t c = text.data[at];
        if (c == '.' && !fraction) {
            fraction = true;
            continue;
        }
        if (!is_digit(c))
            break;
        any = true;
        if (out->mantissa < UINT64_C(1000000000000000000)) {
            out->mantissa = out->mantissa * 10 + (c - '0');
            out->exponent -= fraction;
        } else {
            out->exponent += !fraction;
        }
        if (out->exponent > 400 || out->exponent < -400)
            return false;
    }
    if (!any)
        return false;
    if (at < text.size && (text.data[at] == 'e' || text.data[at] == 'E')) {
        bool negative = false;
        int exponent = 0;
        at++;
        if (at < text.size && (text.data[at] == '-' || text.data[at] == '+'))
            negative = text.data[at++] == '-';
        if (at >= text.size)
            return false;
        for (; at < text.size && is_digit(text.data[at]); at++) {
            exponent = exponent * 10 + (text.data[at] - '0');
            if (exponent > 400)
                return false;
        }
        out->exponent += negative ? -exponent : exponent;
    }
    return at == text.size;
}

static int auto_exponent(const struct decimal_text *decimal)
{
    double magnitude = (double)decimal->mantissa;
    for (int e = decimal->exponent; e > 0 && magnitude < 1e30; e--)
        magnitude *= 10;
    for (int e = decimal->exponent; e < 0 && magnitude > 1e-3; e++)
        magnitude /= 10;
    return magnitude < 1e11 ? 9 : magnitude < 1e14 ? 6 : magnitude < 1e17 ? 3 : 0;
}

bool event_time_from_number(int64_t *time_ns_out, struct span text, enum event_time_unit unit)
{
    static const int unit_exponent[] = {[EVENT_TIME_S] = 9, [EVENT_TIME_MS] = 6, [EVENT_TIME_US] = 3, [EVENT_TIME_NS] = 0};
    struct decimal_text decimal;
    if (!decimal_parse(&decimal, text))
        return false;
    int exponent = decimal.exponent + (unit == EVENT_TIME_AUTO ? auto_exponent(&decimal) : unit_exponent[unit]);
    uint64_t value = decimal.mantissa;
    for (; exponent > 0 && value > 0; exponent--) {
        if (value > (uint64_t)INT64_MAX / 10)
            return false;
        value *= 10;
    }
    bool half = false;
    for (; exponent < 0 && (value > 0 || half); exponent++) {
        half = value % 10 >= 5;
        value /= 10;
    }
    value += half;
    if (value > (uint64_t)INT64_MAX)
        return false;
    *time_ns_out = decimal.negative ? -(int64_t)value : (int64_t)value;
    return true;
}

size_t event_time_format(char out[CLOCK_TEXT_SIZE], int64_t time_ns)
{
    unsigned digits = time_ns % NS_PER_S == 0 ? 0 : time_ns % NS_PER_MS == 0 ? 3 : time_ns % NS_PER_US == 0 ? 6 : 9;
    return clock_format(out, time_ns, digits);
}
