/* The cardinality guard: which devices and series (device, metric) the sink knows, and whether a new one may begin.
 *
 * Existing series always go on; a new one is refused once a cap is reached, with the reason. Known series are 64-bit seeded hashes, 16
 * bytes a slot, so a million series costs tens of megabytes and a collision (about 1e-7 at a million) lets one new series in uncounted. The
 * rate of new series is a token bucket of max_new_series_per_hour, full at the start. One guard serves all partitions of a process. Thread:
 * one writer, the ingest thread. Counts may be read by any thread. Pure. */
#ifndef TIDEGATE_SINK_STORE_SERIES_H
#define TIDEGATE_SINK_STORE_SERIES_H

#include "common/bytes.h"
#include "common/err.h"
#include "sink/decode/reject.h"

/* INT64_MAX (OPTION_UNLIMITED): no limit. */
struct series_limits {
    int64_t devices_max;
    int64_t metrics_per_device_max;
    int64_t new_series_per_hour_max;
};

struct series;

/* NULL when memory is short. hash_seed keys the tables. */
struct series *series_new(const struct series_limits *limits, uint64_t hash_seed);
void series_free(struct series *series);

/* Note a series that is stored already (at start, from the segments); no cap applies. Returns 0 or ERR_NOMEM. */
must_check enum err series_note(struct series *series, struct span device, struct span metric);

/* May a row of `device` come in? Returns REJECT_NONE with *device_out set for series_admit_metric (valid until the next call for another
 * device), REJECT_DEVICE_CAP or REJECT_NO_MEMORY. A device that is new counts from its first admitted metric on. */
struct series_device {
    uint64_t hash;
    int64_t metric_count;
    bool is_known;
};
enum reject series_admit_device(struct series *series, struct series_device *device_out, struct span device);

/* May `metric` of it? Returns REJECT_NONE, REJECT_METRIC_CAP, REJECT_SERIES_RATE, REJECT_NO_MEMORY. now_ns: wall time, for the rate. */
enum reject series_admit_metric(struct series *series, struct series_device *device, struct span metric, int64_t now_ns);

/* Thread: any. */
int64_t series_device_count(const struct series *series);
int64_t series_count(const struct series *series);

#endif
