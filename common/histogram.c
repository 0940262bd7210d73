/* Cells: values below 2 * SUB_COUNT have one each (cell = value); from there on the octave [2^k, 2^(k+1)) has SUB_COUNT cells of width
 * 2^(k - SUB_BITS). With shift = k - SUB_BITS the cell is shift * SUB_COUNT + (value >> shift), which joins the exact range without a gap.
 */
#include "common/histogram.h"

#include <assert.h>

#include "common/check.h"

/* NOLINTNEXTLINE(misc-redundant-expression): the header says it in other words */
static_assert(HISTOGRAM_CELL_COUNT == (HISTOGRAM_VALUE_BITS - HISTOGRAM_SUB_BITS + 1) * (1u << HISTOGRAM_SUB_BITS),
              "cells cover the values");

static uint64_t load(const uint64_t *cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }
static void store(uint64_t *cell, uint64_t value) { __atomic_store_n(cell, value, __ATOMIC_RELAXED); }

size_t histogram_cell_of(uint64_t value)
{
    if (value > HISTOGRAM_VALUE_MAX)
        value = HISTOGRAM_VALUE_MAX;
    if (value < 2 * HISTOGRAM_SUB_COUNT)
        return (size_t)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return (size_t)shift * HISTOGRAM_SUB_COUNT + (size_t)(value >> shift);
}

uint64_t histogram_cell_low(size_t cell)
{
    if (cell < 2 * HISTOGRAM_SUB_COUNT)
        return cell;
    unsigned shift = (unsigned)(cell / HISTOGRAM_SUB_COUNT) - 1;
    return (uint64_t)(cell - (size_t)shift * HISTOGRAM_SUB_COUNT) << shift;
}

uint64_t histogram_cell_high(size_t cell)
{
    if (cell < 2 * HISTOGRAM_SUB_COUNT)
        return cell;
    unsigned shift = (unsigned)(cell / HISTOGRAM_SUB_COUNT) - 1;
    return histogram_cell_low(cell) + (UINT64_C(1) << shift) - 1;
}

void histogram_init(struct histogram *histogram) { *histogram = (struct histogram){.min = UINT64_MAX}; }

void histogram_record(struct histogram *histogram, uint64_t value) { histogram_record_many(histogram, value, 1); }

void histogram_record_many(struct histogram *histogram, uint64_t value, uint64_t count)
{
    if (count == 0)
        return;
    uint64_t *cell = &histogram->cells[histogram_cell_of(value)];
    store(cell, *cell + count);
    store(&histogram->count, histogram->count + count);
    store(&histogram->sum, histogram->sum + value * count);
    if (value < histogram->min)
        store(&histogram->min, value);
    if (value > histogram->max)
        store(&histogram->max, value);
}

/* The count is taken from the cells that were read, so that quantiles of the result add up whatever the owner of `from` does meanwhile. */
void histogram_merge(struct histogram *into, const struct histogram *from)
{
    uint64_t count = 0;
    for (size_t i = 0; i < HISTOGRAM_CELL_COUNT; i++) {
        uint64_t cell = load(&from->cells[i]);
        if (cell == 0)
            continue;
        store(&into->cells[i], into->cells[i] + cell);
        count += cell;
    }
    store(&into->count, into->count + count);
    store(&into->sum, into->sum + load(&from->sum));
    uint64_t min = load(&from->min);
    if (min < into->min)
        store(&into->min, min);
    uint64_t max = load(&from->max);
    if (max > into->max)
        store(&into->max, max);
}

uint64_t histogram_quantile(const struct histogram *histogram, double quantile)
{
    uint64_t total = 0;
    for (size_t i = 0; i < HISTOGRAM_CELL_COUNT; i++)
        total += load(&histogram->cells[i]);
    if (total == 0)
        return 0;
    if (!(quantile > 0))
        return histogram_min(histogram);
    double wanted = quantile >= 1 ? (double)total : quantile * (double)total;
    uint64_t max = histogram_max(histogram);
    uint64_t seen = 0;
    for (size_t i = 0; i + 1 < HISTOGRAM_CELL_COUNT; i++) {
        seen += load(&histogram->cells[i]);
        if ((double)seen >= wanted && seen > 0) {
            uint64_t high = histogram_cell_high(i);
            return high < max ? high : max;
        }
    }
    return max; /* the last cell also holds what is past the range */
}

uint64_t histogram_count_at_most(const struct histogram *histogram, uint64_t value)
{
    uint64_t seen = 0;
    for (size_t i = 0; i < HISTOGRAM_CELL_COUNT; i++) {
        uint64_t low = histogram_cell_low(i);
        if (low + (histogram_cell_high(i) - low) / 2 > value)
            break;
        seen += load(&histogram->cells[i]);
    }
    return seen;
}

uint64_t histogram_count(const struct histogram *histogram) { return load(&histogram->count); }
uint64_t histogram_sum(const struct histogram *histogram) { return load(&histogram->sum); }
uint64_t histogram_min(const struct histogram *histogram) { return histogram_count(histogram) ? load(&histogram->min) : 0; }
uint64_t histogram_max(const struct histogram *histogram) { return load(&histogram->max); }

double histogram_mean(const struct histogram *histogram)
{
    uint64_t count = histogram_count(histogram);
    return count ? (double)histogram_sum(histogram) / (double)count : 0;
}
