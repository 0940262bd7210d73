/* The slow, obvious model of stored rows: a dense array over few devices, times and metrics, the last write wins.
 *
 * Tests write the same rows to a store and to the model and then compare streams with it. Owned by the test. */
#ifndef TIDEGATE_TESTS_LIB_STORE_MODEL_H
#define TIDEGATE_TESTS_LIB_STORE_MODEL_H

#include "sink/store/head.h"
#include "sink/store/merge.h"
#include "tests/lib/check_random.h"

#define MODEL_DEVICES 3
#define MODEL_TIMES 3000
#define MODEL_METRICS 6
#define MODEL_TIME_BASE 1700000000000000000
#define MODEL_TIME_STEP 250000000

struct store_model {
    double values[MODEL_DEVICES][MODEL_TIMES][MODEL_METRICS];
    bool has[MODEL_DEVICES][MODEL_TIMES][MODEL_METRICS];
};

static inline int64_t store_model_time(size_t time_index) { return MODEL_TIME_BASE + (int64_t)time_index * MODEL_TIME_STEP; }
struct span store_model_device(size_t device_index);
struct span store_model_metric(size_t metric_index);

/* A random row for `device` at `time_index`: fills metrics_out (room for MODEL_METRICS), returns how many, 1... Values are telemetry-like,
 * with special doubles now and then. */
size_t store_model_row(struct check_random *random, struct head_metric *metrics_out);

/* Write a row into the model. */
void store_model_write(struct store_model *model, size_t device_index, size_t time_index, const struct head_metric *metrics, size_t count);

/* Points and rows in the model. */
size_t store_model_point_count(const struct store_model *model);
size_t store_model_row_count(const struct store_model *model, size_t device_index, size_t from, size_t to);

/* Read a stream to its end and compare it with the device's rows of times [from, to] (indexes). Prints the first difference and returns
 * false. merge is freed. */
bool store_model_equals(const struct store_model *model, size_t device_index, size_t from, size_t to, struct merge *merge);

#endif
