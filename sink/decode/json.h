/* JSON to flat fields: the C face of simdjson (json.cc is the only C++ file of the house).
 *
 * One document is one object or an array of objects; each object becomes a row of fields, nested objects flattened with dots
 * ({"gps":{"lat":1}} is the field gps.lat). Numbers keep their text beside their value, because a nanosecond time stamp does not fit a
 * double. What is no number, boolean or object is reported with its kind and otherwise skipped. What the fields mean is decided in
 * payload.c.
 *
 * Bounds: JSON_SIZE_MAX bytes, JSON_DEPTH_MAX nested objects, JSON_FIELDS_MAX fields, JSON_ROWS_MAX rows, JSON_NAME_MAX bytes a name. Input
 * is never trusted: whatever it is, the answer is one of the verdicts. Memory: one growing buffer per decoder, reused; a decode of
 * telemetry allocates nothing once it is warm. Thread: one decoder, one thread. */
#ifndef TIDEGATE_SINK_DECODE_JSON_H
#define TIDEGATE_SINK_DECODE_JSON_H

#include "common/bytes.h"
#include "common/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define JSON_SIZE_MAX (1U << 20)
#define JSON_DEPTH_MAX 16
#define JSON_FIELDS_MAX (1U << 18)
#define JSON_ROWS_MAX (1U << 16)
#define JSON_NAME_MAX 255

enum json_verdict {
    JSON_OK,
    JSON_SYNTAX,     /* not JSON, or not UTF-8, or bytes behind the document */
    JSON_NOT_OBJECT, /* JSON, but neither an object nor an array of objects */
    JSON_TOO_DEEP,   /* more than JSON_DEPTH_MAX objects inside each other */
    JSON_TOO_LARGE,  /* past one of the other bounds */
    JSON_NO_MEMORY,
};

enum json_kind {
    JSON_NUMBER,  /* value and text */
    JSON_BOOLEAN, /* value 0 or 1 */
    JSON_STRING,  /* text: the raw bytes between the quotes, escapes not resolved */
    JSON_NULL,
    JSON_ARRAY,      /* inside an object: not telemetry */
    JSON_UNREADABLE, /* a number outside the range of a double; the document goes on */
};

struct json_field {
    struct span name; /* flattened, UTF-8, 1..JSON_NAME_MAX bytes */
    struct span text;
    double value;
    enum json_kind kind;
};

/* Fields [field_first, field_first + field_count) of the document, in source order; duplicates are all there. */
struct json_row {
    uint32_t field_first;
    uint32_t field_count;
};

/* Valid until the next json_decode() of the same decoder. */
struct json_document {
    const struct json_row *rows;
    size_t row_count;
    const struct json_field *fields;
    size_t field_count;
};

struct json_decoder;

/* NULL when memory is short. */
struct json_decoder *json_new(void);
void json_free(struct json_decoder *decoder);

/* Decode `text` (borrowed until return; copied, so it needs no padding). Fills `out` at JSON_OK only. Does not block. */
enum json_verdict json_decode(struct json_decoder *decoder, struct json_document *out, struct span text);

#ifdef __cplusplus
}
#endif

#endif
