/* Clocks, and times as text.
 *
 * Two kinds of time that must not mix: `mono_ns` never jumps and means nothing outside this boot (timeouts, ages, latencies); `wall_ns` is
 * nanoseconds since 1970-01-01 UTC (what is stored, shown and compared with devices). Pure code includes this header for the types, takes
 * its times as arguments and never calls clock_*(). Thread: any. */
#ifndef TIDEGATE_COMMON_CLOCK_H
#define TIDEGATE_COMMON_CLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

typedef int64_t mono_ns;
typedef int64_t wall_ns;

#define NS_PER_US INT64_C(1000)
#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S INT64_C(1000000000)
#define NS_PER_MINUTE (60 * NS_PER_S)
#define NS_PER_HOUR (3600 * NS_PER_S)
#define NS_PER_DAY (24 * NS_PER_HOUR)

/* The clocks (system calls, mostly answered in the vDSO). */
mono_ns clock_mono(void);
wall_ns clock_wall(void);
/* CPU time of the calling thread, ns. */
int64_t clock_thread_cpu(void);

/* Room for clock_format(): "2026-11-21T06:09:12.123456789Z" and the NUL. */
#define CLOCK_TEXT_SIZE 40

/* RFC 3339 in UTC with `fraction_digits` (0..9) of the second; years 0000..9999 hold all of wall_ns.
 * Returns the length written, without the NUL. Pure. */
size_t clock_format(char text_out[CLOCK_TEXT_SIZE], wall_ns wall, unsigned fraction_digits);

/* Parse RFC 3339: "2026-11-21T06:09:12[.fraction](Z|+hh:mm|-hh:mm)", 't', 'z' and ' ' between date and time allowed; digits past the ninth
 * are dropped; second 60 is taken as the next second's start. The whole span must match. Returns false, with nothing written, when it does
 * not, or when the time does not fit wall_ns (1677..2262). Pure. */
bool clock_parse_rfc3339(wall_ns *wall_out, struct span text);

/* Parse a time as a person types it: "now", "-1h", "-90s", "now-15m", "+5m" (units ns us ms s m h d w, relative to `now`), RFC 3339, a bare
 * date "2026-11-21" (midnight UTC), or a number: seconds, or ms / us / ns since 1970 told apart by their size. Pure. Returns 0 or
 * ERR_INVALID. */
enum err clock_parse_relative(wall_ns *wall_out, struct span text, wall_ns now) must_check;

/* Parse "250ms", "10s", "1h", "2w" (an unsigned integer and one of the units ns us ms s m h d w) as ns; "0" needs no unit. Pure.
 * Returns false when malformed or past INT64_MAX. */
bool clock_parse_duration(int64_t *duration_ns_out, struct span text);

/* The shortest exact text of a duration, "10s", "1500ms", "1h"; room for CLOCK_TEXT_SIZE. Returns the length. Pure. */
size_t clock_format_duration(char text_out[CLOCK_TEXT_SIZE], int64_t duration_ns);

/* Days since 1970-01-01 of a proleptic Gregorian date (month 1..12, day 1..31), and back. Pure. */
int64_t clock_days_from_date(int64_t year, unsigned month, unsigned day);
void clock_date_from_days(int64_t *year_out, unsigned *month_out, unsigned *day_out, int64_t days);

#endif
