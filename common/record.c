#include "common/record.h"

#include "common/check.h"
#include "common/position_list.h"

/* The encoding (docs/formats.md has the table): u32 size, u8 type, then fields. A field is a tag byte and a varint (TAG_BYTES clear) or a
 * varint size and that many bytes (TAG_BYTES set), so that a field nobody knows can be passed over. */
#define TAG_MUST_UNDERSTAND 0x80
#define TAG_BYTES 0x40
#define TAG_NUMBER 0x3f

enum tag {
    TAG_FLAGS = 1, /* bits 0-1 QoS, 2 retain, 3 dup */
    TAG_RECEIVED = 2,
    TAG_EXPIRY = 3,
    TAG_PACKET_ID = 4,
    TAG_RETAINED = 5,
    TAG_WILL_SESSION = 6,
    TAG_SESSION = 7,
    TAG_RULE_INDEX = 8,
    TAG_PARTITION = 9,
    TAG_PARTITION_COUNT = 10,
    TAG_CODEC = 11,
    TAG_SUBJECT_EPOCH = 12,
    TAG_SUBJECT_SEQUENCE = 13,
    TAG_OPTIONS = 14,
    TAG_TOPIC = TAG_BYTES | 1,
    TAG_PROPERTIES = TAG_BYTES | 2,
    TAG_CLIENT_ID = TAG_BYTES | 3,
    TAG_RULE = TAG_BYTES | 4,
    TAG_DEVICE = TAG_BYTES | 5,
    TAG_RECIPIENTS = TAG_BYTES | 6,
    TAG_SHARED_GROUPS = TAG_BYTES | 7,
    TAG_CORRELATION = TAG_BYTES | 8,
    TAG_PAYLOAD = TAG_BYTES | 9, /* the last */
    TAG_POSITIONS = TAG_BYTES | 10,
    TAG_USER_NAME = TAG_BYTES | 11,
};

static inline size_t varint_size(uint64_t value)
{
    /* Seven bits a byte: (bits + 6) / 7 without a division. */
    return (size_t)(((64 - __builtin_clzll(value | 1)) * 9 + 64) >> 6);
}

static inline size_t number_size(uint64_t value) { return value ? 1 + varint_size(value) : 0; }
static inline size_t bytes_size(struct span bytes) { return bytes.size ? 1 + varint_size(bytes.size) + bytes.size : 0; }

static inline uint8_t *put_number(uint8_t *at, enum tag tag, uint64_t value)
{
    if (value) {
        *at++ = (uint8_t)tag;
        at += varint_put(at, value);
    }
    return at;
}

static inline uint8_t *put_bytes(uint8_t *at, enum tag tag, struct span bytes)
{
    if (bytes.size) {
        *at++ = (uint8_t)tag;
        at += varint_put(at, bytes.size);
        bytes_copy_short(at, bytes.data, bytes.size);
        at += bytes.size;
    }
    return at;
}

static inline uint64_t flags_of(const struct record *rec)
{
    return (uint64_t)(rec->qos & 3u) | (rec->retain ? 4u : 0u) | (rec->dup ? 8u : 0u);
}

bool record_is_state(const struct record *rec)
{
    if (rec->type != RECORD_PUBLISH)
        return rec->type != RECORD_PARTITIONS && rec->type != RECORD_DEVICE;
    return rec->recipients.size > 0 || rec->shared_groups.size > 0 || rec->retained_number != 0 || rec->packet_id != 0 ||
           rec->will_session != 0;
}

size_t record_head_size(const struct record *rec)
{
    size_t size = RECORD_SIZE_MIN;
    size += number_size(flags_of(rec));
    size += number_size(zigzag_encode(rec->received_ns));
    size += number_size(zigzag_encode(rec->expiry_ns));
    size += number_size(rec->packet_id);
    size += number_size(rec->retained_number);
    size += number_size(rec->will_session);
    size += number_size(rec->session);
    size += number_size(rec->rule_index);
    size += number_size(rec->partition);
    size += number_size(rec->partition_count);
    size += number_size(rec->codec);
    size += number_size(rec->subject_epoch);
    size += number_size(rec->subject_sequence);
    size += number_size(rec->options);
    size += bytes_size(rec->topic);
    size += bytes_size(rec->properties);
    size += bytes_size(rec->client_id);
    size += bytes_size(rec->rule);
    size += bytes_size(rec->device);
    size += bytes_size(rec->recipients);
    size += bytes_size(rec->shared_groups);
    size += bytes_size(rec->positions);
    size += bytes_size(rec->user_name);
    size += rec->has_correlation ? 2 + RECORD_CORRELATION_SIZE : 0;
    size += rec->payload.size ? 1 + varint_size(rec->payload.size) : 0;
    return size;
}

size_t record_size(const struct record *rec) { return record_head_size(rec) + rec->payload.size; }

size_t record_encode_head(uint8_t *at, const struct record *rec)
{
    uint8_t *begin = at;
    at += 4;
    *at++ = rec->type;
    at = put_number(at, TAG_FLAGS, flags_of(rec));
    if (rec->has_correlation) /* ends in a count, and the time follows: what differs from record to record stands together, for LZ4 */
        at = put_bytes(at, TAG_CORRELATION, span_of(rec->correlation, RECORD_CORRELATION_SIZE));
    at = put_number(at, TAG_RECEIVED, zigzag_encode(rec->received_ns));
    at = put_number(at, TAG_EXPIRY, zigzag_encode(rec->expiry_ns));
    at = put_number(at, TAG_PACKET_ID, rec->packet_id);
    at = put_number(at, TAG_RETAINED, rec->retained_number);
    at = put_number(at, TAG_WILL_SESSION, rec->will_session);
    at = put_number(at, TAG_SESSION, rec->session);
    at = put_number(at, TAG_RULE_INDEX, rec->rule_index);
    at = put_number(at, TAG_PARTITION, rec->partition);
    at = put_number(at, TAG_PARTITION_COUNT, rec->partition_count);
    at = put_number(at, TAG_CODEC, rec->codec);
    at = put_number(at, TAG_SUBJECT_EPOCH, rec->subject_epoch);
    at = put_number(at, TAG_SUBJECT_SEQUENCE, rec->subject_sequence);
    at = put_number(at, TAG_OPTIONS, rec->options);
    at = put_bytes(at, TAG_TOPIC, rec->topic);
    at = put_bytes(at, TAG_PROPERTIES, rec->properties);
    at = put_bytes(at, TAG_CLIENT_ID, rec->client_id);
    at = put_bytes(at, TAG_RULE, rec->rule);
    at = put_bytes(at, TAG_DEVICE, rec->device);
    at = put_bytes(at, TAG_RECIPIENTS, rec->recipients);
    at = put_bytes(at, TAG_SHARED_GROUPS, rec->shared_groups);
    at = put_bytes(at, TAG_POSITIONS, rec->positions);
    at = put_bytes(at, TAG_USER_NAME, rec->user_name);
    if (rec->payload.size) {
        *at++ = TAG_PAYLOAD;
        at += varint_put(at, rec->payload.size);
    }
    size_t size = (size_t)(at - begin);
    CHECK(size + rec->payload.size <= RECORD_SIZE_MAX);
    store_le32(begin, (uint32_t)(size + rec->payload.size));
    return size;
}

size_t record_encode(uint8_t *at, const struct record *rec)
{
    size_t head = record_encode_head(at, rec);
    if (rec->payload.size)
        memcpy(at + head, rec->payload.data, rec->payload.size);
    return head + rec->payload.size;
}

size_t record_ack_begin(uint8_t *at, uint64_t *last, uint64_t session, uint64_t sequence)
{
    CHECK(session != 0);
    *last = 0;
    at[4] = RECORD_ACK;
    uint8_t *end = put_number(at + RECORD_SIZE_MIN, TAG_SESSION, session);
    *end++ = TAG_POSITIONS;
    uint8_t *size = end++;
    *size = (uint8_t)position_list_put(end, last, sequence);
    end += *size;
    store_le32(at, (uint32_t)(end - at));
    return (size_t)(end - at);
}

size_t record_ack_grow(uint8_t *at, uint64_t *last, uint64_t sequence)
{
    uint8_t *size = at + RECORD_SIZE_MIN + 1; /* behind the session's tag */
    while (*size & 0x80)
        size++;
    size += 2; /* and the positions' */
    if (*size > 0x7f - VARINT_SIZE_MAX)
        return 0; /* the size of the list would take a second byte */
    uint32_t whole = load_le32(at);
    size_t used = position_list_put(at + whole, last, sequence);
    *size = (uint8_t)(*size + used);
    store_le32(at, whole + (uint32_t)used);
    return used;
}

/* A number that must fit into `max`: larger ones are no record of ours. */
static inline bool fits(uint64_t value, uint64_t max) { return value <= max; }

static enum err decode_number(struct record *rec, uint8_t tag, uint64_t value)
{
    switch (tag & TAG_NUMBER) {
    case TAG_FLAGS:
        if (!fits(value, 15) || (value & 3) == 3)
            return ERR_CORRUPT;
        rec->qos = (uint8_t)(value & 3);
        rec->retain = value & 4;
        rec->dup = value & 8;
        return ERR_OK;
    case TAG_RECEIVED:
        rec->received_ns = zigzag_decode(value);
        return ERR_OK;
    case TAG_EXPIRY:
        rec->expiry_ns = zigzag_decode(value);
        return ERR_OK;
    case TAG_PACKET_ID:
        rec->packet_id = (uint16_t)value;
        return fits(value, UINT16_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_RETAINED:
        rec->retained_number = value;
        return ERR_OK;
    case TAG_WILL_SESSION:
        rec->will_session = value;
        return ERR_OK;
    case TAG_SESSION:
        rec->session = value;
        return ERR_OK;
    case TAG_RULE_INDEX:
        rec->rule_index = (uint32_t)value;
        return fits(value, UINT32_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_PARTITION:
        rec->partition = (uint32_t)value;
        return fits(value, UINT32_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_PARTITION_COUNT:
        rec->partition_count = (uint32_t)value;
        return fits(value, UINT32_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_CODEC:
        rec->codec = (uint8_t)value;
        return fits(value, UINT8_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_SUBJECT_EPOCH:
        rec->subject_epoch = (uint32_t)value;
        return fits(value, UINT32_MAX) ? ERR_OK : ERR_CORRUPT;
    case TAG_SUBJECT_SEQUENCE:
        rec->subject_sequence = value;
        return ERR_OK;
    case TAG_OPTIONS:
        rec->options = value;
        return ERR_OK;
    default:
        return tag & TAG_MUST_UNDERSTAND ? ERR_VERSION : ERR_OK;
    }
}

static enum err decode_bytes(struct record *rec, uint8_t tag, struct span bytes)
{
    switch ((tag & TAG_NUMBER) | TAG_BYTES) {
    case TAG_TOPIC:
        rec->topic = bytes;
        return ERR_OK;
    case TAG_PROPERTIES:
        rec->properties = bytes;
        return ERR_OK;
    case TAG_CLIENT_ID:
        rec->client_id = bytes;
        return ERR_OK;
    case TAG_RULE:
        rec->rule = bytes;
        return ERR_OK;
    case TAG_DEVICE:
        rec->device = bytes;
        return ERR_OK;
    case TAG_RECIPIENTS:
        rec->recipients = bytes;
        return ERR_OK;
    case TAG_SHARED_GROUPS:
        rec->shared_groups = bytes;
        return ERR_OK;
    case TAG_CORRELATION:
        if (bytes.size != RECORD_CORRELATION_SIZE)
            return ERR_CORRUPT;
        memcpy(rec->correlation, bytes.data, RECORD_CORRELATION_SIZE);
        rec->has_correlation = true;
        return ERR_OK;
    case TAG_PAYLOAD:
        rec->payload = bytes;
        return ERR_OK;
    case TAG_POSITIONS:
        rec->positions = bytes;
        return ERR_OK;
    case TAG_USER_NAME:
        rec->user_name = bytes;
        return ERR_OK;
    default:
        return tag & TAG_MUST_UNDERSTAND ? ERR_VERSION : ERR_OK;
    }
}

enum err record_decode(struct record *rec_out, struct span bytes)
{
    memset(rec_out, 0, sizeof *rec_out);
    if (bytes.size < RECORD_SIZE_MIN || load_le32(bytes.data) != bytes.size)
        return ERR_CORRUPT;
    rec_out->type = bytes.data[4];
    if (rec_out->type == 0)
        return ERR_CORRUPT;
    if (rec_out->type & RECORD_TYPE_MUST_UNDERSTAND)
        return ERR_VERSION;
    const uint8_t *at = bytes.data + RECORD_SIZE_MIN;
    const uint8_t *end = bytes.data + bytes.size;
    while (at < end) {
        uint8_t tag = *at++;
        uint64_t value;
        size_t used = varint_get(&value, at, end);
        if (used == 0 || (tag & TAG_NUMBER) == 0)
            return ERR_CORRUPT;
        at += used;
        enum err err;
        if (tag & TAG_BYTES) {
            if (value > (size_t)(end - at))
                return ERR_CORRUPT;
            err = decode_bytes(rec_out, tag, span_of(at, (size_t)value));
            at += value;
        } else {
            err = decode_number(rec_out, tag, value);
        }
        if (err)
            return err;
    }
    return ERR_OK;
}

bool record_find_parties(struct span *fields_out, struct span bytes, const struct record *rec)
{
    const struct {
        struct span value;
        uint8_t tag;
    } fields[] = {{rec->client_id, TAG_CLIENT_ID}, {rec->rule, TAG_RULE}, {rec->device, TAG_DEVICE}, {rec->recipients, TAG_RECIPIENTS}};
    const uint8_t *begin = NULL, *end = NULL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        struct span value = fields[i].value;
        uint64_t size;
        size_t head = 1 + varint_size(value.size);
        if (value.size == 0)
            continue;
        const uint8_t *at = value.data - head; /* behind RECORD_SIZE_MIN bytes, or the encoding is another */
        if (at < bytes.data + RECORD_SIZE_MIN || at[0] != fields[i].tag || varint_get(&size, at + 1, value.data) != head - 1 ||
            size != value.size || (end && at != end))
            return false;
        begin = begin ? begin : at;
        end = value.data + value.size;
    }
    *fields_out = span_of(begin, (size_t)(end - begin));
    return begin != NULL;
}

enum err record_next(struct span *record_out, struct span *bytes)
{
    if (bytes->size == 0)
        return ERR_AGAIN;
    if (bytes->size < RECORD_SIZE_MIN)
        return ERR_CORRUPT;
    size_t size = load_le32(bytes->data);
    if (size < RECORD_SIZE_MIN || size > bytes->size)
        return ERR_CORRUPT;
    *record_out = span_of(bytes->data, size);
    *bytes = span_of(bytes->data + size, bytes->size - size);
    return ERR_OK;
}

size_t record_recipient_put(uint8_t *at, const struct record_recipient *recipient)
{
    uint8_t *begin = at;
    at += varint_put(at, recipient->session);
    *at++ = recipient->qos;
    *at++ = recipient->options;
    at += varint_put(at, recipient->ids.size);
    if (recipient->ids.size)
        memcpy(at, recipient->ids.data, recipient->ids.size);
    return (size_t)(at - begin) + recipient->ids.size;
}

enum err record_recipient_next(struct record_recipient *recipient_out, struct span *recipients)
{
    const uint8_t *at = recipients->data;
    if (recipients->size == 0)
        return ERR_AGAIN;
    const uint8_t *end = at + recipients->size;
    uint64_t session, ids_size;
    size_t used = varint_get(&session, at, end);
    if (used == 0 || (size_t)(end - at) < used + 2)
        return ERR_CORRUPT;
    at += used;
    recipient_out->session = session;
    recipient_out->qos = *at++;
    recipient_out->options = *at++;
    used = varint_get(&ids_size, at, end);
    if (used == 0 || recipient_out->qos > 2)
        return ERR_CORRUPT;
    at += used;
    if (ids_size > (size_t)(end - at))
        return ERR_CORRUPT;
    recipient_out->ids = span_of(at, (size_t)ids_size);
    at += ids_size;
    *recipients = span_of(at, (size_t)(end - at));
    return ERR_OK;
}

enum err record_id_next(uint32_t *id_out, struct span *ids)
{
    uint64_t id;
    if (ids->size == 0)
        return ERR_AGAIN;
    size_t used = varint_get(&id, ids->data, ids->data + ids->size);
    if (used == 0 || id > UINT32_MAX)
        return ERR_CORRUPT;
    *id_out = (uint32_t)id;
    *ids = span_of(ids->data + used, ids->size - used);
    return ERR_OK;
}

const char *record_type_name(uint8_t type)
{
    static const char *const names[] = {
        [RECORD_PUBLISH] = "publish",
        [RECORD_PARTITIONS] = "partitions",
        [RECORD_SESSION] = "session",
        [RECORD_SESSION_DELETE] = "session_delete",
        [RECORD_SUBSCRIPTION] = "subscription",
        [RECORD_UNSUBSCRIBE] = "unsubscribe",
        [RECORD_WILL] = "will",
        [RECORD_WILL_DELETE] = "will_delete",
        [RECORD_ACK] = "ack",
        [RECORD_DROP] = "drop",
        [RECORD_SENT] = "sent",
        [RECORD_RECEIVED] = "received",
        [RECORD_RELEASED] = "released",
        [RECORD_BEGUN] = "begun",
        [RECORD_DEVICE] = "device",
        [RECORD_RETAINED_GIVEN] = "retained_given",
    };
    return type < sizeof names / sizeof *names && names[type] ? names[type] : "unknown";
}

void record_correlation_text(char text_out[RECORD_CORRELATION_TEXT_SIZE], const struct record *rec)
{
    static const char digits[] = "0123456789abcdef";
    size_t size = rec->has_correlation ? RECORD_CORRELATION_SIZE : 0;
    for (size_t i = 0; i < size; i++) {
        text_out[2 * i] = digits[rec->correlation[i] >> 4];
        text_out[2 * i + 1] = digits[rec->correlation[i] & 15];
    }
    text_out[2 * size] = '\0';
}
