#include "broker/mqtt/properties.h"

#include "broker/mqtt/frame.h"
#include "broker/mqtt/topic.h"
#include "common/check.h"
#include "common/utf8.h"

enum kind {
    KIND_BYTE = 1,
    KIND_U16,
    KIND_U32,
    KIND_VARINT,
    KIND_STRING,
    KIND_BINARY,
    KIND_PAIR,
};

enum rule {
    RULE_ANY,
    RULE_BOOL,
    RULE_NONZERO,
    RULE_ALIAS,
    RULE_TOPIC,
};

/* A row of the table: how to read the value, where it goes, who may send it where. kind 0: no such property. */
struct property_spec {
    uint8_t kind;
    uint8_t rule;
    uint16_t offset;
    uint16_t from[2]; /* sets of packets, by enum mqtt_sender */
    uint16_t repeatable;
    const char *text_short;
    const char *text_place;
    const char *text_twice;
    const char *text_value;
};

#define PROPERTY_ID_LIMIT 0x2b
#define NONE 0
#define IN(packet) (1u << MQTT_##packet)
static const struct property_spec property_specs[PROPERTY_ID_LIMIT] = {
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable)                                                   \
    [id] = {KIND_##kind,                                                                                                                   \
            RULE_##rule,                                                                                                                   \
            offsetof(struct mqtt_properties, field),                                                                                       \
            {from_client, from_server},                                                                                                    \
            repeatable,                                                                                                                    \
            "property " #name ": cut short",                                                                                               \
            "property " #name ": not allowed in this packet",                                                                              \
            "property " #name ": given twice [MQTT-3.1.4-1]",                                                                              \
            "property " #name ": value not allowed"},
#include "broker/mqtt/mqtt_spec.def"
};
#undef IN
#undef NONE

#define SIZE_BYTE sizeof(uint8_t)
#define SIZE_U16 sizeof(uint16_t)
#define SIZE_U32 sizeof(uint32_t)
#define SIZE_VARINT sizeof(uint32_t)
#define SIZE_STRING sizeof(struct span)
#define SIZE_BINARY sizeof(struct span)
#define SIZE_PAIR sizeof(uint32_t)
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable)                                                   \
    _Static_assert(sizeof(((struct mqtt_properties *)0)->field) == SIZE_##kind, "the table's kind is the field's");
#include "broker/mqtt/mqtt_spec.def"

/* One property as it stands in a block. */
struct item {
    unsigned id;
    const struct property_spec *spec;
    uint32_t number;     /* BYTE U16 U32 VARINT */
    struct span text;    /* STRING BINARY, a PAIR's name */
    struct span value;   /* a PAIR's value */
    struct span encoded; /* all of it, identifier included */
};

static bool read_text(struct span *out, const uint8_t **at, const uint8_t *end)
{
    if (end - *at < 2)
        return false;
    size_t size = load_be16(*at);
    if ((size_t)(end - *at) - 2 < size)
        return false;
    *out = span_of(*at + 2, size);
    *at += 2 + size;
    return true;
}

enum read_result {
    READ_OK,
    READ_UNKNOWN, /* no such identifier */
    READ_SHORT,   /* out->spec is set */
};

/* Read the property that begins at *at < end, and step over it. Judges the form only. */
static enum read_result read_item(struct item *out, const uint8_t **at, const uint8_t *end)
{
    const uint8_t *begin = *at;
    /* The identifier is a variable byte integer; all there are fit one byte, and a longer form would not be the shortest. */
    unsigned id = *begin;
    if (id >= PROPERTY_ID_LIMIT || property_specs[id].kind == 0)
        return READ_UNKNOWN;
    const struct property_spec *spec = &property_specs[id];
    const uint8_t *next = begin + 1;
    size_t room = (size_t)(end - next);
    bool fits = true;
    out->id = id;
    out->spec = spec;
    switch ((enum kind)spec->kind) {
    case KIND_BYTE:
        if ((fits = room >= 1))
            out->number = *next;
        next += fits ? 1 : 0;
        break;
    case KIND_U16:
        if ((fits = room >= 2))
            out->number = load_be16(next);
        next += fits ? 2 : 0;
        break;
    case KIND_U32:
        if ((fits = room >= 4))
            out->number = load_be32(next);
        next += fits ? 4 : 0;
        break;
    case KIND_VARINT: {
        size_t used = mqtt_varint_get(&out->number, next, end);
        fits = used != 0;
        next += used;
        break;
    }
    case KIND_STRING:
    case KIND_BINARY:
        fits = read_text(&out->text, &next, end);
        break;
    case KIND_PAIR:
        fits = read_text(&out->text, &next, end) && read_text(&out->value, &next, end);
        break;
    }
    if (!fits)
        return READ_SHORT;
    out->encoded = span_of(begin, (size_t)(next - begin));
    *at = next;
    return READ_OK;
}

/* Is the value one that the property may have? */
static struct mqtt_verdict check_value(const struct item *item)
{
    switch ((enum rule)item->spec->rule) {
    case RULE_ANY:
        break;
    case RULE_BOOL:
        if (item->number > 1)
            return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, item->spec->text_value);
        break;
    case RULE_NONZERO:
        if (item->number == 0)
            return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, item->spec->text_value);
        break;
    case RULE_ALIAS:
        if (item->number == 0)
            return mqtt_bad(MQTT_REASON_TOPIC_ALIAS_INVALID, "property TOPIC_ALIAS: 0 [MQTT-3.3.2-8]");
        break;
    case RULE_TOPIC:
        if (!utf8_is_valid(item->text))
            return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property RESPONSE_TOPIC: not valid UTF-8 [MQTT-3.3.2-13]");
        if (!topic_name_is_valid(item->text))
            return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, "property RESPONSE_TOPIC: empty or with a wildcard [MQTT-3.3.2-14]");
        break;
    }
    if (item->spec->kind == KIND_STRING && !utf8_is_valid(item->text))
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property: string is not valid UTF-8 [MQTT-1.5.4-1, -2] [MQTT-3.3.2-19]");
    if (item->spec->kind == KIND_PAIR && (!utf8_is_valid(item->text) || !utf8_is_valid(item->value)))
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property USER_PROPERTY: not valid UTF-8 [MQTT-1.5.7-1]");
    return mqtt_ok();
}

/* May it be here, and is it the first of its kind? */
static struct mqtt_verdict check_place(const struct item *item, uint64_t present, enum mqtt_packet_type type, enum mqtt_sender sender)
{
    const struct property_spec *spec = item->spec;
    if (!(spec->from[sender] >> type & 1)) {
        if (item->id == MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER && type == MQTT_PUBLISH)
            return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, "PUBLISH: subscription identifier from a client [MQTT-3.3.4-6]");
        if (item->id == MQTT_PROPERTY_SESSION_EXPIRY_INTERVAL && type == MQTT_DISCONNECT)
            return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, "DISCONNECT: session expiry from a server [MQTT-3.14.2-2]");
        bool other_side_may = (spec->from[!sender] >> type & 1) != 0;
        return mqtt_bad(other_side_may ? MQTT_REASON_PROTOCOL_ERROR : MQTT_REASON_MALFORMED_PACKET, spec->text_place);
    }
    if ((present >> item->id & 1) && !(spec->repeatable >> type & 1))
        return mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, spec->text_twice);
    return mqtt_ok();
}

static void store_value(struct mqtt_properties *out, const struct item *item)
{
    uint8_t *field = (uint8_t *)out + item->spec->offset;
    switch ((enum kind)item->spec->kind) {
    case KIND_BYTE:
        *field = (uint8_t)item->number;
        break;
    case KIND_U16: {
        uint16_t number = (uint16_t)item->number;
        memcpy(field, &number, sizeof number);
        break;
    }
    case KIND_U32:
        memcpy(field, &item->number, sizeof item->number);
        break;
    case KIND_VARINT: /* the first one stays */
        if (out->subscription_identifier_count++ == 0)
            out->subscription_identifier = item->number;
        break;
    case KIND_STRING:
    case KIND_BINARY:
        memcpy(field, &item->text, sizeof item->text);
        break;
    case KIND_PAIR:
        out->user_property_count++;
        break;
    }
    out->present |= UINT64_C(1) << item->id;
}

struct mqtt_verdict properties_decode(struct mqtt_properties *out, size_t *used_out, enum mqtt_packet_type type, enum mqtt_sender sender,
                                      const uint8_t *at, const uint8_t *end)
{
    properties_init(out);
    uint32_t block_size;
    size_t prefix_size = mqtt_varint_get(&block_size, at, end);
    if (prefix_size == 0)
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property length: cut short or not in its shortest form [MQTT-1.5.5-1]");
    at += prefix_size;
    if ((size_t)(end - at) < block_size)
        return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property length: larger than the packet");
    *used_out = prefix_size + block_size;
    out->raw = span_of(at, block_size);
    end = at + block_size;
    while (at < end) {
        struct item item;
        enum read_result result = read_item(&item, &at, end);
        if (result == READ_UNKNOWN)
            return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "property: unknown identifier");
        if (result == READ_SHORT)
            return mqtt_bad(MQTT_REASON_MALFORMED_PACKET, item.spec->text_short);
        struct mqtt_verdict verdict = check_place(&item, out->present, type, sender);
        if (verdict.judgement != MQTT_OK)
            return verdict;
        verdict = check_value(&item);
        if (verdict.judgement != MQTT_OK)
            return verdict;
        store_value(out, &item);
    }
    return mqtt_ok();
}

/* Step to the next property of `rest`, whichever it is. */
static bool next_item(struct span *rest, struct item *out)
{
    const uint8_t *at = rest->data;
    const uint8_t *end = rest->data + rest->size;
    if (rest->size == 0 || read_item(out, &at, end) != READ_OK) {
        rest->size = 0;
        return false;
    }
    *rest = span_of(at, (size_t)(end - at));
    return true;
}

bool properties_next_user_property(struct span *rest, struct span *name_out, struct span *value_out)
{
    struct item item;
    while (next_item(rest, &item)) {
        if (item.id != MQTT_PROPERTY_USER_PROPERTY)
            continue;
        *name_out = item.text;
        *value_out = item.value;
        return true;
    }
    return false;
}

bool properties_next_subscription_identifier(struct span *rest, uint32_t *identifier_out)
{
    struct item item;
    while (next_item(rest, &item)) {
        if (item.id != MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER)
            continue;
        *identifier_out = item.number;
        return true;
    }
    return false;
}

/* Copy those properties of `raw` whose bit is in `ids`; at may be NULL to count only. */
static size_t copy_items(uint8_t *at, struct span raw, uint64_t ids)
{
    size_t size = 0;
    struct item item;
    while (next_item(&raw, &item)) {
        if (!(ids >> item.id & 1))
            continue;
        if (at)
            memcpy(at + size, item.encoded.data, item.encoded.size);
        size += item.encoded.size;
    }
    return size;
}

static size_t put_text(uint8_t *at, struct span text)
{
    CHECK(text.size <= UINT16_MAX);
    if (at) {
        store_be16(at, (uint16_t)text.size);
        if (text.size)
            memcpy(at + 2, text.data, text.size);
    }
    return 2 + text.size;
}

static size_t put_varint_property(uint8_t *at, unsigned id, uint32_t value)
{
    CHECK(value <= MQTT_VARINT_MAX);
    if (at) {
        at[0] = (uint8_t)id;
        mqtt_varint_put(at + 1, value);
    }
    return 1 + mqtt_varint_size(value);
}

/* One single-valued property from its field. */
static size_t put_field(uint8_t *at, const struct mqtt_properties *props, unsigned id)
{
    const struct property_spec *spec = &property_specs[id];
    const uint8_t *field = (const uint8_t *)props + spec->offset;
    uint8_t *value_at = at ? at + 1 : NULL;
    if (at)
        at[0] = (uint8_t)id;
    switch ((enum kind)spec->kind) {
    case KIND_BYTE:
        if (at)
            value_at[0] = *field;
        return 2;
    case KIND_U16: {
        uint16_t number;
        memcpy(&number, field, sizeof number);
        if (at)
            store_be16(value_at, number);
        return 3;
    }
    case KIND_U32: {
        uint32_t number;
        memcpy(&number, field, sizeof number);
        if (at)
            store_be32(value_at, number);
        return 5;
    }
    case KIND_STRING:
    case KIND_BINARY: {
        struct span text;
        memcpy(&text, field, sizeof text);
        return 1 + put_text(value_at, text);
    }
    case KIND_VARINT:
    case KIND_PAIR:
        break;
    }
    UNREACHABLE();
}

/* Both passes of the encoder: at NULL only counts, so that size and bytes cannot disagree. */
static size_t put_all(uint8_t *at, const struct mqtt_properties *props)
{
    const uint64_t repeated = MQTT_PROPERTY_BIT(USER_PROPERTY) | MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER);
    size_t size = 0;
    for (uint64_t left = props->present & ~repeated; left != 0; left &= left - 1)
        size += put_field(at ? at + size : NULL, props, (unsigned)__builtin_ctzll(left));
    uint64_t from_raw = props->present & repeated;
    if ((from_raw & MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER)) && props->subscription_identifier_count <= 1) {
        size += put_varint_property(at ? at + size : NULL, MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER, props->subscription_identifier);
        from_raw &= ~MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER);
    }
    if (from_raw != 0)
        size += copy_items(at ? at + size : NULL, props->raw, from_raw);
    return size;
}

size_t properties_size(const struct mqtt_properties *props) { return props->present ? put_all(NULL, props) : 0; }

size_t properties_put(uint8_t *at, const struct mqtt_properties *props) { return props->present ? put_all(at, props) : 0; }

size_t properties_put_user_property(uint8_t *at, struct span name, struct span value)
{
    at[0] = MQTT_PROPERTY_USER_PROPERTY;
    size_t size = 1;
    size += put_text(at + size, name);
    size += put_text(at + size, value);
    return size;
}

#define FORWARDABLE                                                                                                                        \
    (MQTT_PROPERTY_BIT(PAYLOAD_FORMAT_INDICATOR) | MQTT_PROPERTY_BIT(CONTENT_TYPE) | MQTT_PROPERTY_BIT(RESPONSE_TOPIC) |                   \
     MQTT_PROPERTY_BIT(CORRELATION_DATA) | MQTT_PROPERTY_BIT(USER_PROPERTY))

size_t properties_forwardable_size(struct span raw) { return copy_items(NULL, raw, FORWARDABLE); }

size_t properties_forwardable_put(uint8_t *at, struct span raw) { return copy_items(at, raw, FORWARDABLE); }

static size_t put_forward_own(uint8_t *at, const struct properties_forward *forward)
{
    size_t size = 0;
    if (forward->has_message_expiry) {
        if (at) {
            at[size] = MQTT_PROPERTY_MESSAGE_EXPIRY_INTERVAL;
            store_be32(at + size + 1, forward->message_expiry_interval_s);
        }
        size += 5;
    }
    if (forward->topic_alias != 0) {
        if (at) {
            at[size] = MQTT_PROPERTY_TOPIC_ALIAS;
            store_be16(at + size + 1, forward->topic_alias);
        }
        size += 3;
    }
    for (size_t i = 0; i < forward->subscription_identifier_count; i++)
        size += put_varint_property(at ? at + size : NULL, MQTT_PROPERTY_SUBSCRIPTION_IDENTIFIER, forward->subscription_identifiers[i]);
    return size;
}

size_t properties_forward_own_size(const struct properties_forward *forward) { return put_forward_own(NULL, forward); }

size_t properties_forward_own_put(uint8_t *at, const struct properties_forward *forward) { return put_forward_own(at, forward); }
