#include "tests/lib/store_model.h"

#include <stdio.h>

static const char *const device_names[MODEL_DEVICES] = {"pump-1", "pump-10", "truck"};
/* One is the beginning of another, and their order is not that of writing. */
static const char *const metric_names[MODEL_METRICS] = {"temperature", "temp", "flow.rate", "a", "zeta", "humidity"};

struct span store_model_device(size_t device_index) { return span_of_string(device_names[device_index]); }
struct span store_model_metric(size_t metric_index) { return span_of_string(metric_names[metric_index]); }

static double random_value(struct check_random *random)
{
    uint64_t bits;
    double value;
    switch (check_random_below(random, 12)) {
    case 0:
        bits = check_random_next(random);
        memcpy(&value, &bits, sizeof value);
        return value;
    case 1:
        return -0.0;
    case 2:
        return 1e300;
    default:
        return (double)check_random_between(random, -1000, 1000) / 10;
    }
}

size_t store_model_row(struct check_random *random, struct head_metric *metrics_out)
{
    size_t count = 0, first = check_random_below(random, MODEL_METRICS);
    for (size_t i = 0; i < MODEL_METRICS; i++)
        if (count == 0 || check_random_chance(random, 2, 3))
            metrics_out[count++] = (struct head_metric){store_model_metric((first + i) % MODEL_METRICS), random_value(random)};
    return count;
}

void store_model_write(struct store_model *model, size_t device_index, size_t time_index, const struct head_metric *metrics, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t m = 0; m < MODEL_METRICS; m++)
            if (span_equal(metrics[i].name, store_model_metric(m))) {
                model->values[device_index][time_index][m] = metrics[i].value;
                model->has[device_index][time_index][m] = true;
            }
}

size_t store_model_point_count(const struct store_model *model)
{
    size_t count = 0;
    for (size_t d = 0; d < MODEL_DEVICES; d++)
        for (size_t t = 0; t < MODEL_TIMES; t++)
            for (size_t m = 0; m < MODEL_METRICS; m++)
                count += model->has[d][t][m];
    return count;
}

static bool has_row(const struct store_model *model, size_t d, size_t t)
{
    for (size_t m = 0; m < MODEL_METRICS; m++)
        if (model->has[d][t][m])
            return true;
    return false;
}

size_t store_model_row_count(const struct store_model *model, size_t device_index, size_t from, size_t to)
{
    size_t count = 0;
    for (size_t t = from; t <= to && t < MODEL_TIMES; t++)
        count += has_row(model, device_index, t);
    return count;
}

static bool row_equals(const struct store_model *model, size_t d, size_t t, const struct rows *rows, size_t row)
{
    size_t matched = 0, wanted = 0;
    for (size_t m = 0; m < MODEL_METRICS; m++) {
        if (!model->has[d][t][m])
            continue;
        wanted++;
        for (size_t c = 0; c < rows->column_count; c++)
            if (span_equal(rows->columns[c].name, store_model_metric(m)) && rows_has(&rows->columns[c], row) &&
                memcmp(&rows->columns[c].values[row], &model->values[d][t][m], sizeof(double)) == 0)
                matched++;
    }
    size_t present = 0;
    for (size_t c = 0; c < rows->column_count; c++)
        present += rows_has(&rows->columns[c], row);
    if (matched == wanted && present == wanted)
        return true;
    fprintf(stderr, "device %zu, time %zu: %zu values expected, %zu of them right, %zu present\n", d, t, wanted, matched, present);
    return false;
}

bool store_model_equals(const struct store_model *model, size_t device_index, size_t from, size_t to, struct merge *merge)
{
    struct rows rows;
    size_t t = from;
    bool equal = merge != NULL;
    while (equal) {
        enum err err = merge_next(merge, &rows);
        if (err) {
            fprintf(stderr, "the stream ends with: %s\n", err_text(err));
            equal = false;
        }
        if (err || rows.row_count == 0)
            break;
        for (size_t c = 1; c < rows.column_count && equal; c++)
            equal = span_compare(rows.columns[c - 1].name, rows.columns[c].name) < 0;
        for (size_t row = 0; row < rows.row_count && equal; row++, t++) {
            while (t < MODEL_TIMES && !has_row(model, device_index, t))
                t++;
            if (t > to || t >= MODEL_TIMES || rows.times_ns[row] != store_model_time(t)) {
                fprintf(stderr, "device %zu: a row at %lld, expected one at time %zu\n", device_index, (long long)rows.times_ns[row], t);
                equal = false;
                break;
            }
            equal = row_equals(model, device_index, t, &rows, row);
        }
    }
    merge_free(merge);
    if (equal && store_model_row_count(model, device_index, t, to)) {
        fprintf(stderr, "device %zu: the stream ends before time %zu\n", device_index, t);
        return false;
    }
    return equal;
}
