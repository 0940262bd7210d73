/* Why something that arrived as telemetry is not stored: the labels of tidegate_sink_quarantined_total{reason} and of the quarantine files.
 * Nothing is dropped without one of these. */
#ifndef TIDEGATE_SINK_DECODE_REJECT_H
#define TIDEGATE_SINK_DECODE_REJECT_H

#define REJECT_MAP(X)                                                                                                                      \
    X(NOT_JSON, "not_json", "the payload is not JSON")                                                                                     \
    X(NOT_OBJECT, "not_object", "neither an object nor an array of objects")                                                               \
    X(TOO_DEEP, "too_deep", "objects nested deeper than the bound")                                                                        \
    X(TOO_LARGE, "too_large", "payload, row or name count, or a name larger than the bound")                                               \
    X(NO_METRICS, "no_metrics", "no number and no boolean in it")                                                                          \
    X(BAD_TIME, "bad_time", "the time field is not a time")                                                                                \
    X(FUTURE, "future", "the time is further in the future than future_bound")                                                             \
    X(NO_DEVICE, "no_device", "no device name, or one that is empty, too long or not printable")                                           \
    X(DEVICE_CAP, "device_cap", "max_devices reached")                                                                                     \
    X(METRIC_CAP, "metric_cap", "max_metrics_per_device reached")                                                                          \
    X(SERIES_RATE, "series_rate", "max_new_series_per_hour reached")                                                                       \
    X(NO_MEMORY, "no_memory", "memory was short while decoding")                                                                           \
    X(CODEC, "codec", "a payload codec that this sink does not read")                                                                      \
    X(BAD_RECORD, "bad_record", "the record of the log cannot be decoded")

enum reject {
    REJECT_NONE,
#define X(name, label, text) REJECT_##name,
    REJECT_MAP(X)
#undef X
        REJECT_COUNT
};

static inline const char *reject_label(enum reject reject)
{
    static const char *const labels[] = {"none",
#define X(name, label, text) label,
                                         REJECT_MAP(X)
#undef X
    };
    return (unsigned)reject < REJECT_COUNT ? labels[reject] : "unknown";
}

static inline const char *reject_text(enum reject reject)
{
    static const char *const texts[] = {"accepted",
#define X(name, label, text) text,
                                        REJECT_MAP(X)
#undef X
    };
    return (unsigned)reject < REJECT_COUNT ? texts[reject] : "unknown";
}

#endif
