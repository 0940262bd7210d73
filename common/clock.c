#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/check.h"

static int64_t clock_read(clockid_t id)
{
    struct timespec time;
    int rc = clock_gettime(id, &time);
    CHECK(rc == 0);
    return (int64_t)time.tv_sec * NS_PER_S + time.tv_nsec;
}

mono_ns clock_mono(void) { return clock_read(CLOCK_MONOTONIC); }
wall_ns clock_wall(void) { return clock_read(CLOCK_REALTIME); }
int64_t clock_thread_cpu(void) { return clock_read(CLOCK_THREAD_CPUTIME_ID); }

/* Both directions count in a calendar whose year begins in March, so that the leap day is the last of a year, and in eras of 400 years
 * (146097 days). */
int64_t clock_days_from_date(int64_t year, unsigned month, unsigned day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t year_of_era = year - era * 400;
    int64_t day_of_year = (153 * ((int64_t)month + (month > 2 ? -3 : 9)) + 2) / 5 + (int64_t)day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + day_of_era - 719468;
}

void clock_date_from_days(int64_t *year_out, unsigned *month_out, unsigned *day_out, int64_t days)
{
    days += 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097;
    int64_t day_of_era = days - era * 146097;
    int64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t shifted_month = (5 * day_of_year + 2) / 153;
    *day_out = (unsigned)(day_of_year - (153 * shifted_month + 2) / 5 + 1);
    *month_out = (unsigned)(shifted_month < 10 ? shifted_month + 3 : shifted_month - 9);
    *year_out = year_of_era + era * 400 + (*month_out <= 2);
}

static int64_t floor_divide(int64_t value, int64_t divisor) { return value / divisor - (value % divisor < 0); }

static void put_digits(char *at, uint64_t value, unsigned count)
{
    while (count > 0) {
        at[--count] = (char)('0' + value % 10);
        value /= 10;
    }
}

size_t clock_format(char text_out[CLOCK_TEXT_SIZE], wall_ns wall, unsigned fraction_digits)
{
    int64_t second = floor_divide(wall, NS_PER_S);
    uint64_t fraction = (uint64_t)wall - (uint64_t)second * (uint64_t)NS_PER_S; /* unsigned: the floor of the least time does not fit */
    int64_t days = floor_divide(second, 86400);
    uint64_t of_day = (uint64_t)(second - days * 86400);
    int64_t year;
    unsigned month, day;
    clock_date_from_days(&year, &month, &day, days);

    char *at = text_out;
    memcpy(at, "0000-00-00T00:00:00", 19);
    put_digits(at, (uint64_t)year, 4);
    put_digits(at + 5, month, 2);
    put_digits(at + 8, day, 2);
    put_digits(at + 11, of_day / 3600, 2);
    put_digits(at + 14, of_day / 60 % 60, 2);
    put_digits(at + 17, of_day % 60, 2);
    at += 19;
    if (fraction_digits > 9)
        fraction_digits = 9;
    if (fraction_digits > 0) {
        for (unsigned i = fraction_digits; i < 9; i++)
            fraction /= 10;
        *at++ = '.';
        put_digits(at, fraction, fraction_digits);
        at += fraction_digits;
    }
    *at++ = 'Z';
    *at = '\0';
    return (size_t)(at - text_out);
}

/* A reader over a span: each step says whether it matched. */
struct cursor {
    const uint8_t *at;
    const uint8_t *end;
};

static bool take_byte(struct cursor *cursor, char byte)
{
    if (cursor->at == cursor->end || *cursor->at != (uint8_t)byte)
        return false;
    cursor->at++;
    return true;
}

static bool take_digits(struct cursor *cursor, unsigned count, unsigned *value_out)
{
    unsigned value = 0;
    if ((size_t)(cursor->end - cursor->at) < count)
        return false;
    for (unsigned i = 0; i < count; i++) {
        unsigned digit = (unsigned)cursor->at[i] - '0';
        if (digit > 9)
            return false;
        value = value * 10 + digit;
    }
    cursor->at += count;
    *value_out = value;
    return true;
}

static unsigned days_in_month(unsigned year, unsigned month)
{
    static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && is_leap ? 1u : 0u);
}

static bool take_date(struct cursor *cursor, int64_t *days_out)
{
    unsigned year, month, day;
    if (!take_digits(cursor, 4, &year) || !take_byte(cursor, '-') || !take_digits(cursor, 2, &month) || !take_byte(cursor, '-') ||
        !take_digits(cursor, 2, &day))
        return false;
    if (month < 1 || month > 12 || day < 1 || day > days_in_month(year, month))
        return false;
    *days_out = clock_days_from_date(year, month, day);
    return true;
}

/* [.digits], as ns. */
static bool take_fraction(struct cursor *cursor, int64_t *fraction_ns_out)
{
    int64_t unit = NS_PER_S;
    int64_t fraction = 0;
    unsigned digit;
    *fraction_ns_out = 0;
    if (!take_byte(cursor, '.') && !take_byte(cursor, ','))
        return true;
    if (!take_digits(cursor, 1, &digit))
        return false;
    do {
        unit /= 10;
        fraction += digit * unit;
    } while (take_digits(cursor, 1, &digit));
    *fraction_ns_out = fraction;
    return true;
}

static bool take_zone(struct cursor *cursor, int64_t *offset_s_out)
{
    *offset_s_out = 0;
    if (take_byte(cursor, 'Z') || take_byte(cursor, 'z'))
        return true;
    int64_t sign = take_byte(cursor, '+') ? 1 : take_byte(cursor, '-') ? -1 : 0;
    unsigned hours, minutes;
    if (sign == 0 || !take_digits(cursor, 2, &hours) || !take_byte(cursor, ':') || !take_digits(cursor, 2, &minutes))
        return false;
    if (hours > 23 || minutes > 59)
        return false;
    *offset_s_out = sign * (int64_t)(hours * 3600 + minutes * 60);
    return true;
}

/* second * 1e9 + fraction without passing wall_ns' range on the way: the least times have a quotient one below what multiplies safely. */
static bool wall_from_parts(wall_ns *wall_out, int64_t second, int64_t fraction_ns)
{
    int64_t wall;
    if (second < 0 && fraction_ns > 0) {
        second++;
        fraction_ns -= NS_PER_S;
    }
    if (__builtin_mul_overflow(second, NS_PER_S, &wall) || __builtin_add_overflow(wall, fraction_ns, &wall))
        return false;
    *wall_out = wall;
    return true;
}

bool clock_parse_rfc3339(wall_ns *wall_out, struct span text)
{
    struct cursor cursor = {text.data, text.data + text.size};
    int64_t days, fraction_ns, offset_s;
    unsigned hour, minute, second;
    if (text.size == 0 || !take_date(&cursor, &days))
        return false;
    if (!take_byte(&cursor, 'T') && !take_byte(&cursor, 't') && !take_byte(&cursor, ' '))
        return false;
    if (!take_digits(&cursor, 2, &hour) || !take_byte(&cursor, ':') || !take_digits(&cursor, 2, &minute) || !take_byte(&cursor, ':') ||
        !take_digits(&cursor, 2, &second))
        return false;
    if (hour > 23 || minute > 59 || second > 60)
        return false;
    if (!take_fraction(&cursor, &fraction_ns) || !take_zone(&cursor, &offset_s) || cursor.at != cursor.end)
        return false;
    if (second == 60)
        fraction_ns = 0;
    int64_t total = days * 86400 + (int64_t)hour * 3600 + (int64_t)minute * 60 + (int64_t)second - offset_s;
    return wall_from_parts(wall_out, total, fraction_ns);
}

static const struct {
    const char *name;
    int64_t ns;
} duration_units[] = {{"w", 7 * NS_PER_DAY}, {"d", NS_PER_DAY}, {"h", NS_PER_HOUR}, {"m", NS_PER_MINUTE},
                      {"s", NS_PER_S},       {"ms", NS_PER_MS}, {"us", NS_PER_US},  {"ns", 1}};
#define DURATION_UNIT_COUNT (sizeof duration_units / sizeof duration_units[0])

/* Decimal digits at the front; false without any or past INT64_MAX. */
static bool take_integer(struct cursor *cursor, int64_t *value_out)
{
    int64_t value = 0;
    const uint8_t *start = cursor->at;
    for (; cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9'; cursor->at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *cursor->at - '0', &value))
            return false;
    *value_out = value;
    return cursor->at > start;
}

bool clock_parse_duration(int64_t *duration_ns_out, struct span text)
{
    struct cursor cursor = {text.data, text.data + text.size};
    int64_t count, duration;
    if (text.size == 0 || !take_integer(&cursor, &count))
        return false;
    struct span unit = span_of(cursor.at, (size_t)(cursor.end - cursor.at));
    if (unit.size == 0 && count == 0) {
        *duration_ns_out = 0;
        return true;
    }
    for (size_t i = 0; i < DURATION_UNIT_COUNT; i++) {
        if (!span_equal(unit, span_of_string(duration_units[i].name)))
            continue;
        if (__builtin_mul_overflow(count, duration_units[i].ns, &duration))
            return false;
        *duration_ns_out = duration;
        return true;
    }
    return false;
}

size_t clock_format_duration(char text_out[CLOCK_TEXT_SIZE], int64_t duration_ns)
{
    if (duration_ns == 0)
        return (size_t)snprintf(text_out, CLOCK_TEXT_SIZE, "0s");
    size_t unit = 0;
    while (duration_ns % duration_units[unit].ns != 0)
        unit++;
    return (size_t)snprintf(text_out, CLOCK_TEXT_SIZE, "%lld%s", (long long)(duration_ns / duration_units[unit].ns),
                            duration_units[unit].name);
}

/* Seconds, or ms / us / ns by the size: 1e11 s is the year 5138, and 1e11 ms is 1973. */
static bool wall_from_number(wall_ns *wall_out, int64_t number)
{
    int64_t unit = number < INT64_C(100000000000)         ? NS_PER_S
                   : number < INT64_C(100000000000000)    ? NS_PER_MS
                   : number < INT64_C(100000000000000000) ? NS_PER_US
                                                          : 1;
    return !__builtin_mul_overflow(number, unit, wall_out);
}

enum err clock_parse_relative(wall_ns *wall_out, struct span text, wall_ns now)
{
    struct cursor cursor = {text.data, text.data + text.size};
    bool has_now = text.size >= 3 && memcmp(text.data, "now", 3) == 0;
    if (has_now)
        cursor.at += 3;
    if (has_now && cursor.at == cursor.end) {
        *wall_out = now;
        return ERR_OK;
    }
    int sign = take_byte(&cursor, '-') ? -1 : take_byte(&cursor, '+') ? 1 : 0;
    if (sign != 0) {
        int64_t duration;
        if (!clock_parse_duration(&duration, span_of(cursor.at, (size_t)(cursor.end - cursor.at))))
            return ERR_INVALID;
        bool overflows = sign < 0 ? __builtin_sub_overflow(now, duration, wall_out) : __builtin_add_overflow(now, duration, wall_out);
        return overflows ? ERR_INVALID : ERR_OK;
    }
    if (has_now || text.size == 0)
        return ERR_INVALID;
    if (clock_parse_rfc3339(wall_out, text))
        return ERR_OK;
    int64_t value;
    if (take_date(&cursor, &value) && cursor.at == cursor.end)
        return wall_from_parts(wall_out, value * 86400, 0) ? ERR_OK : ERR_INVALID;
    cursor.at = text.data;
    if (take_integer(&cursor, &value) && cursor.at == cursor.end)
        return wall_from_number(wall_out, value) ? ERR_OK : ERR_INVALID;
    return ERR_INVALID;
}
