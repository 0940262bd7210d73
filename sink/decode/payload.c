#include "sink/decode/payload.h"

#include <stdlib.h>

#include "common/hash.h"

/* Rows up to this many points look for duplicate names by comparing, larger ones by hashing. */
#define SMALL_ROW 6

struct name_slot {
    uint64_t hash;
    uint32_t row_stamp;
    uint32_t point_index;
};

struct payload_decoder {
    struct payload_rules rules;
    struct json_decoder *json;
    struct payload_row *rows;
    size_t row_capacity;
    struct payload_point *points;
    size_t point_count;
    size_t point_capacity;
    struct name_slot *slots; /* open addressing; a slot is taken when its stamp is the current row's */
    size_t slot_count;       /* power of two, at least twice the row's fields */
    uint32_t row_stamp;
};

struct payload_decoder *payload_new(const struct payload_rules *rules)
{
    struct payload_decoder *decoder = calloc(1, sizeof *decoder);
    if (!decoder)
        return NULL;
    decoder->rules = *rules;
    decoder->json = json_new();
    if (!decoder->json) {
        free(decoder);
        return NULL;
    }
    return decoder;
}

void payload_free(struct payload_decoder *decoder)
{
    if (!decoder)
        return;
    json_free(decoder->json);
    free(decoder->rows);
    free(decoder->points);
    free(decoder->slots);
    free(decoder);
}

static enum reject reject_of(enum json_verdict verdict)
{
    switch (verdict) {
    case JSON_OK:
        return REJECT_NONE;
    case JSON_SYNTAX:
        return REJECT_NOT_JSON;
    case JSON_NOT_OBJECT:
        return REJECT_NOT_OBJECT;
    case JSON_TOO_DEEP:
        return REJECT_TOO_DEEP;
    case JSON_TOO_LARGE:
        return REJECT_TOO_LARGE;
    case JSON_NO_MEMORY:
        return REJECT_NO_MEMORY;
    }
    return REJECT_NOT_JSON;
}

static bool reserve(struct payload_decoder *decoder, const struct json_document *document, size_t fields_in_row_max)
{
    if (decoder->row_capacity < document->row_count) {
        struct payload_row *rows = realloc(decoder->rows, document->row_count * 2 * sizeof *rows);
        if (!rows)
            return false;
        decoder->rows = rows;
        decoder->row_capacity = document->row_count * 2;
    }
    if (decoder->point_capacity < document->field_count) {
        struct payload_point *points = realloc(decoder->points, document->field_count * 2 * sizeof *points);
        if (!points)
            return false;
        decoder->points = points;
        decoder->point_capacity = document->field_count * 2;
    }
    if (decoder->slot_count < fields_in_row_max * 2) {
        size_t count = 64;
        while (count < fields_in_row_max * 2)
            count *= 2;
        struct name_slot *slots = calloc(count, sizeof *slots);
        if (!slots)
            return false;
        free(decoder->slots);
        decoder->slots = slots;
        decoder->slot_count = count;
        decoder->row_stamp = 0;
    }
    return true;
}

static bool name_is_plain(struct span name)
{
    for (size_t i = 0; i < name.size; i++) {
        if (name.data[i] < 0x20 || name.data[i] == 0x7f)
            return false;
    }
    return name.size > 0;
}

/* The field that gives the row its time: of the configured names the first that the row has, of that name the last. */
static const struct json_field *row_find_time(const struct payload_rules *rules, const struct json_field *fields, size_t count)
{
    for (size_t n = 0; n < rules->time_name_count; n++) {
        for (size_t i = count; i-- > 0;) {
            if (fields[i].kind != JSON_NULL && span_equal(fields[i].name, rules->time_names[n]))
                return &fields[i];
        }
    }
    return NULL;
}

static bool time_read(int64_t *time_ns_out, const struct json_field *field, enum event_time_unit unit)
{
    if (field->kind == JSON_NUMBER)
        return event_time_from_number(time_ns_out, field->text, unit);
    if (field->kind == JSON_STRING)
        return clock_parse_rfc3339(time_ns_out, field->text) || event_time_from_number(time_ns_out, field->text, unit);
    return false;
}

/* The row's point of this name, NULL when it is new; a new one is noted as the point about to be appended. */
static struct payload_point *point_find(struct payload_decoder *decoder, const struct payload_row *row, size_t field_count,
                                        struct span name)
{
    if (field_count <= SMALL_ROW) {
        for (size_t i = row->point_first; i < decoder->point_count; i++) {
            if (span_equal(decoder->points[i].metric, name))
                return &decoder->points[i];
        }
        return NULL;
    }
    uint64_t hash = hash_span(name, 0);
    for (size_t at = hash & (decoder->slot_count - 1);; at = (at + 1) & (decoder->slot_count - 1)) {
        struct name_slot *slot = &decoder->slots[at];
        if (slot->row_stamp != decoder->row_stamp) {
            *slot = (struct name_slot){.hash = hash, .row_stamp = decoder->row_stamp, .point_index = (uint32_t)decoder->point_count};
            return NULL;
        }
        if (slot->hash == hash && span_equal(decoder->points[slot->point_index].metric, name))
            return &decoder->points[slot->point_index];
    }
}

static void row_add_field(struct payload_decoder *decoder, const struct payload_row *row, size_t field_count,
                          struct payload_ignored *ignored, const struct json_field *field)
{
    switch (field->kind) {
    case JSON_STRING:
        ignored->strings++;
        return;
    case JSON_NULL:
        ignored->nulls++;
        return;
    case JSON_ARRAY:
        ignored->arrays++;
        return;
    case JSON_UNREADABLE:
        ignored->unreadable++;
        return;
    case JSON_NUMBER:
    case JSON_BOOLEAN:
        break;
    }
    if (!name_is_plain(field->name)) {
        ignored->names++;
        return;
    }
    struct payload_point *known = point_find(decoder, row, field_count, field->name);
    if (known) {
        known->value = field->value;
        ignored->duplicates++;
        return;
    }
    decoder->points[decoder->point_count++] = (struct payload_point){field->name, field->value};
}

static void row_decode(struct payload_decoder *decoder, struct payload_row *row, struct payload_ignored *ignored,
                       const struct json_field *fields, size_t count, int64_t received_ns)
{
    const struct json_field *time_field = row_find_time(&decoder->rules, fields, count);
    *row = (struct payload_row){.time_ns = received_ns, .point_first = (uint32_t)decoder->point_count, .own_time = time_field != NULL};
    if (time_field && !time_read(&row->time_ns, time_field, decoder->rules.time_unit)) {
        row->reject = REJECT_BAD_TIME;
        return;
    }
    int64_t latest;
    if (decoder->rules.future_bound_ns > 0 && time_field && !__builtin_add_overflow(received_ns, decoder->rules.future_bound_ns, &latest) &&
        row->time_ns > latest) {
        row->reject = REJECT_FUTURE;
        return;
    }
    if (++decoder->row_stamp == 0) {
        memset(decoder->slots, 0, decoder->slot_count * sizeof *decoder->slots);
        decoder->row_stamp = 1;
    }
    for (size_t i = 0; i < count; i++) {
        /* Every field of the time's name is the time's, earlier ones of a duplicated name too. */
        if (time_field && span_equal(fields[i].name, time_field->name)) {
            ignored->duplicates += &fields[i] != time_field;
            continue;
        }
        row_add_field(decoder, row, count, ignored, &fields[i]);
    }
    row->point_count = (uint32_t)decoder->point_count - row->point_first;
    if (row->point_count == 0)
        row->reject = REJECT_NO_METRICS;
}

enum reject payload_decode(struct payload_decoder *decoder, struct payload_batch *out, struct payload_ignored *ignored, struct span payload,
                           int64_t received_ns)
{
    struct json_document document;
    enum json_verdict verdict = json_decode(decoder->json, &document, payload);
    if (verdict != JSON_OK)
        return reject_of(verdict);
    if (document.row_count == 0)
        return REJECT_NO_METRICS;
    size_t fields_in_row_max = 0;
    for (size_t i = 0; i < document.row_count; i++) {
        if (document.rows[i].field_count > fields_in_row_max)
            fields_in_row_max = document.rows[i].field_count;
    }
    if (!reserve(decoder, &document, fields_in_row_max))
        return REJECT_NO_MEMORY;
    decoder->point_count = 0;
    size_t reject_count = 0;
    for (size_t i = 0; i < document.row_count; i++) {
        const struct json_row *source = &document.rows[i];
        int64_t fallback_ns;
        if (__builtin_add_overflow(received_ns, (int64_t)i, &fallback_ns))
            fallback_ns = received_ns;
        row_decode(decoder, &decoder->rows[i], ignored, document.fields + source->field_first, source->field_count, fallback_ns);
        reject_count += decoder->rows[i].reject != REJECT_NONE;
    }
    *out = (struct payload_batch){decoder->rows, document.row_count, decoder->points, reject_count};
    if (document.row_count == 1 && reject_count == 1)
        return decoder->rows[0].reject;
    return REJECT_NONE;
}
