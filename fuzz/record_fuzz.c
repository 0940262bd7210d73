/* record.c: any bytes decode or are refused, without a read outside; what decodes encodes to something that decodes to the same. */
#include "common/check.h"
#include "common/record.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool same(const struct record *a, const struct record *b)
{
    return a->type == b->type && a->qos == b->qos && a->retain == b->retain && a->dup == b->dup && span_equal(a->topic, b->topic) &&
           span_equal(a->payload, b->payload) && span_equal(a->properties, b->properties) && a->received_ns == b->received_ns &&
           a->expiry_ns == b->expiry_ns && a->packet_id == b->packet_id && a->retained_number == b->retained_number &&
           a->will_session == b->will_session && a->has_correlation == b->has_correlation &&
           memcmp(a->correlation, b->correlation, sizeof a->correlation) == 0 && span_equal(a->client_id, b->client_id) &&
           a->session == b->session && span_equal(a->rule, b->rule) && a->rule_index == b->rule_index && span_equal(a->device, b->device) &&
           a->partition == b->partition && a->partition_count == b->partition_count && a->codec == b->codec &&
           span_equal(a->recipients, b->recipients) && span_equal(a->shared_groups, b->shared_groups) &&
           a->subject_epoch == b->subject_epoch && a->subject_sequence == b->subject_sequence && a->options == b->options;
}

static void walk_recipients(struct span recipients)
{
    struct record_recipient recipient;
    while (record_recipient_next(&recipient, &recipients) == ERR_OK) {
        uint32_t id;
        while (record_id_next(&id, &recipient.ids) == ERR_OK)
            ;
    }
}

static void try_record(struct span bytes)
{
    struct record rec, again;
    if (record_decode(&rec, bytes) != ERR_OK)
        return;
    walk_recipients(rec.recipients);
    size_t encoded_size = record_size(&rec);
    uint8_t *encoded = (uint8_t *)malloc(encoded_size);
    CHECK(encoded);
    CHECK(record_encode(encoded, &rec) == encoded_size);
    CHECK(record_decode(&again, span_of(encoded, encoded_size)) == ERR_OK);
    CHECK(same(&rec, &again));
    free(encoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span rest = span_of(data, size), record;
    try_record(rest);
    while (record_next(&record, &rest) == ERR_OK)
        try_record(record);
    if (size >= RECORD_SIZE_MIN) { /* with a size that fits, so that the fields are reached */
        uint8_t *fixed = (uint8_t *)malloc(size);
        CHECK(fixed);
        memcpy(fixed, data, size);
        store_le32(fixed, (uint32_t)size);
        try_record(span_of(fixed, size));
        free(fixed);
    }
    return 0;
}
