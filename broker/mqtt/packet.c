/* The packet codec. One decode function a packet type, all of the same shape: read the variable header, the properties (MQTT 5), the
 * payload, then insist that nothing is left. Encoding runs one function twice, once without a destination to count, so that the size
 * announced in the fixed header and the bytes written cannot disagree. */
#include "broker/mqtt/packet.h"

#include "common/check.h"
#include "common/utf8.h"

#define MALFORMED(text) mqtt_bad(MQTT_REASON_MALFORMED_PACKET, text)
#define PROTOCOL_ERROR(text) mqtt_bad(MQTT_REASON_PROTOCOL_ERROR, text)

/* What is left to read of a packet. */
struct reader {
    const uint8_t *at;
    const uint8_t *end;
};

static inline size_t reader_left(const struct reader *reader) { return (size_t)(reader->end - reader->at); }

static inline bool read_u8(struct reader *reader, uint8_t *out)
{
    if (reader_left(reader) < 1)
        return false;
    *out = *reader->at++;
    return true;
}

static inline bool read_u16(struct reader *reader, uint16_t *out)
{
    if (reader_left(reader) < 2)
        return false;
    *out = load_be16(reader->at);
    reader->at += 2;
    return true;
}

/* A string or binary data: two bytes of length and so many bytes. */
static inline bool read_text(struct reader *reader, struct span *out)
{
    uint16_t size;
    if (!read_u16(reader, &size) || reader_left(reader) < size)
        return false;
    *out = span_of(reader->at, size);
    reader->at += size;
    return true;
}

static inline struct mqtt_verdict read_properties(struct reader *reader, struct mqtt_properties *out, enum mqtt_version version,
                                                  enum mqtt_packet_type type, enum mqtt_sender sender)
{
    if (version != MQTT_V5) {
        properties_init(out);
        return mqtt_ok();
    }
    if (reader_left(reader) > 0 && *reader->at == 0) { /* the usual case */
        properties_init(out);
        reader->at++;
        return mqtt_ok();
    }
    size_t used = 0;
    struct mqtt_verdict verdict = properties_decode(out, &used, type, sender, reader->at, reader->end);
    reader->at += used;
    return verdict;
}

/* ---- CONNECT ---- */

enum {
    CONNECT_RESERVED = 0x01,
    CONNECT_CLEAN_START = 0x02,
    CONNECT_WILL = 0x04,
    CONNECT_WILL_QOS_SHIFT = 3,
    CONNECT_WILL_RETAIN = 0x20,
    CONNECT_PASSWORD = 0x40,
    CONNECT_USER_NAME = 0x80,
    BRIDGE_LEVEL_V311 = 0x80 | MQTT_V311,
};

/* Which protocol is it, and in which version's form would a refusal be understood? A client that named "MQIsdp" or level 4 is answered as
 * such, everything else as MQTT 5. Level 0x84 is 3.1.1 with mosquitto's bridge bit, whose client falls back to 4 when refused in 3.1.1's
 * form. */
static bool connect_version(enum mqtt_version *version_out, struct span name, uint8_t level)
{
    bool is_mqtt = span_equal(name, SPAN_LITERAL("MQTT"));
    if (span_equal(name, SPAN_LITERAL("MQIsdp"))) {
        *version_out = MQTT_V31;
        return level == MQTT_V31;
    }
    *version_out = level == MQTT_V311 || (is_mqtt && level == BRIDGE_LEVEL_V311) ? MQTT_V311 : MQTT_V5;
    return is_mqtt && (level == MQTT_V311 || level == MQTT_V5);
}

static struct mqtt_verdict check_connect_flags(const struct packet_connect *connect, uint8_t flags)
{
    uint8_t will_qos = flags >> CONNECT_WILL_QOS_SHIFT & 3;
    if ((flags & CONNECT_RESERVED) && connect->version != MQTT_V31)
        return MALFORMED("CONNECT: reserved flag set [MQTT-3.1.2-3]");
    if (will_qos == 3 && ((flags & CONNECT_WILL) || connect->version != MQTT_V31))
        return MALFORMED("CONNECT: will QoS 3 [MQTT-3.1.2-12]");
    /* 3.1 says nothing of the will's flags without a will. */
    if (!(flags & CONNECT_WILL) && connect->version != MQTT_V31) {
        if (will_qos != 0)
            return MALFORMED("CONNECT: will QoS without a will [MQTT-3.1.2-11]");
        if (flags & CONNECT_WILL_RETAIN)
            return MALFORMED("CONNECT: will retain without a will [MQTT-3.1.2-13]");
    }
    if ((flags & CONNECT_PASSWORD) && !(flags & CONNECT_USER_NAME) && connect->version != MQTT_V5)
        return MALFORMED("CONNECT: password without user name [MQTT-3.1.2-22 of 3.1.1]");
    return mqtt_ok();
}

static struct mqtt_verdict decode_connect_will(struct packet_connect *connect, struct reader *reader, enum mqtt_sender sender)
{
    struct mqtt_verdict verdict = read_properties(reader, &connect->will_properties, connect->version, MQTT_WILL, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    if (!read_text(reader, &connect->will_topic))
        return MALFORMED("CONNECT: will topic missing or cut short [MQTT-3.1.2-9]");
    verdict = topic_name_check(connect->will_topic); /* [MQTT-3.1.3-11] */
    if (verdict.judgement != MQTT_OK)
        return verdict;
    if (!read_text(reader, &connect->will_payload))
        return MALFORMED("CONNECT: will payload missing or cut short [MQTT-3.1.2-9]");
    return mqtt_ok();
}

/* User name and password as the flags promise them. 3.1 lets the end of the packet take precedence over the flags, since clients of the
 * version before it had no such fields. */
static struct mqtt_verdict decode_connect_credentials(struct packet_connect *connect, struct reader *reader, uint8_t flags)
{
    bool ends_early = connect->version == MQTT_V31;
    if ((flags & CONNECT_USER_NAME) && !(ends_early && reader_left(reader) == 0)) {
        if (!read_text(reader, &connect->user_name))
            return MALFORMED("CONNECT: user name missing or cut short [MQTT-3.1.2-17]");
        if (!utf8_is_valid(connect->user_name))
            return MALFORMED("CONNECT: user name is not valid UTF-8 [MQTT-3.1.3-12]");
        connect->has_user_name = true;
    }
    if ((flags & CONNECT_PASSWORD) && !(ends_early && reader_left(reader) == 0)) {
        if (!read_text(reader, &connect->password))
            return MALFORMED("CONNECT: password missing or cut short [MQTT-3.1.2-19]");
        connect->has_password = true;
    }
    if (reader_left(reader) > 0)
        return MALFORMED("CONNECT: bytes after the last field announced [MQTT-3.1.2-16, -18]");
    return mqtt_ok();
}

static struct mqtt_verdict decode_connect(struct packet_connect *out, uint8_t header_flags, enum mqtt_sender sender, struct reader *reader)
{
    *out = (struct packet_connect){.version = MQTT_V5};
    struct span name;
    uint8_t level;
    uint8_t flags;
    if (!read_text(reader, &name))
        return MALFORMED("CONNECT: protocol name missing or cut short [MQTT-3.1.2-1]");
    if (!read_u8(reader, &level))
        return MALFORMED("CONNECT: protocol level missing [MQTT-3.1.2-2]");
    if (!connect_version(&out->version, name, level))
        return mqtt_bad(MQTT_REASON_UNSUPPORTED_PROTOCOL_VERSION, "CONNECT: unknown protocol name or level [MQTT-3.1.2-1, -2]");
    if (header_flags != 0 && out->version != MQTT_V31)
        return MALFORMED("CONNECT: fixed header flags are not 0 [MQTT-2.1.3-1]");
    if (!read_u8(reader, &flags) || !read_u16(reader, &out->keep_alive_s))
        return MALFORMED("CONNECT: flags or keep alive missing [MQTT-3.1.4-1]");
    struct mqtt_verdict verdict = check_connect_flags(out, flags);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    out->clean_start = (flags & CONNECT_CLEAN_START) != 0;
    out->has_will = (flags & CONNECT_WILL) != 0;
    if (out->has_will) {
        out->will_qos = flags >> CONNECT_WILL_QOS_SHIFT & 3;
        out->will_retain = (flags & CONNECT_WILL_RETAIN) != 0;
    }

    verdict = read_properties(reader, &out->properties, out->version, MQTT_CONNECT, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    if ((out->properties.present & MQTT_PROPERTY_BIT(AUTHENTICATION_DATA)) &&
        !(out->properties.present & MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD)))
        return PROTOCOL_ERROR("CONNECT: authentication data without a method [3.1.2.11.10]");
    if (!read_text(reader, &out->client_id))
        return MALFORMED("CONNECT: client id missing or cut short [MQTT-3.1.3-3]");
    if (!utf8_is_valid(out->client_id))
        return MALFORMED("CONNECT: client id is not valid UTF-8 [MQTT-3.1.3-4]");
    if (out->has_will) {
        verdict = decode_connect_will(out, reader, sender);
        if (verdict.judgement != MQTT_OK)
            return verdict;
    }
    return decode_connect_credentials(out, reader, flags);
}

bool packet_peek_client_id(struct span *client_id_out, const struct frame *frame, const uint8_t *data)
{
    if (frame->type != MQTT_CONNECT)
        return false;
    struct reader reader = {data + frame->header_size, data + frame->size};
    enum mqtt_version version;
    struct span name;
    uint8_t level;
    uint8_t flags;
    uint16_t keep_alive_s;
    if (!read_text(&reader, &name) || !read_u8(&reader, &level) || !connect_version(&version, name, level))
        return false;
    if (!read_u8(&reader, &flags) || !read_u16(&reader, &keep_alive_s))
        return false;
    if (version == MQTT_V5) {
        uint32_t block_size;
        size_t used = mqtt_varint_get(&block_size, reader.at, reader.end);
        if (used == 0 || reader_left(&reader) - used < block_size)
            return false;
        reader.at += used + block_size;
    }
    return read_text(&reader, client_id_out);
}

/* ---- CONNACK ---- */

/* Return code of 3.1 and 3.1.1 by reason; the first row of a code is what the code is read as. */
static const struct {
    uint8_t code;
    uint8_t reason;
} return_codes[] = {
    {0, MQTT_REASON_SUCCESS},
    {1, MQTT_REASON_UNSUPPORTED_PROTOCOL_VERSION},
    {2, MQTT_REASON_CLIENT_IDENTIFIER_NOT_VALID},
    {3, MQTT_REASON_SERVER_UNAVAILABLE},
    {3, MQTT_REASON_SERVER_BUSY},
    {3, MQTT_REASON_QUOTA_EXCEEDED},
    {3, MQTT_REASON_USE_ANOTHER_SERVER},
    {3, MQTT_REASON_SERVER_MOVED},
    {3, MQTT_REASON_CONNECTION_RATE_EXCEEDED},
    {4, MQTT_REASON_BAD_USER_NAME_OR_PASSWORD},
    {5, MQTT_REASON_NOT_AUTHORIZED},
    {5, MQTT_REASON_BANNED},
    {5, MQTT_REASON_BAD_AUTHENTICATION_METHOD},
};

int packet_connack_return_code(enum mqtt_reason reason)
{
    for (size_t i = 0; i < sizeof return_codes / sizeof return_codes[0]; i++)
        if (return_codes[i].reason == (unsigned)reason)
            return return_codes[i].code;
    return -1;
}

static bool connack_reason(enum mqtt_reason *reason_out, uint8_t return_code)
{
    for (size_t i = 0; i < sizeof return_codes / sizeof return_codes[0]; i++) {
        if (return_codes[i].code != return_code)
            continue;
        *reason_out = return_codes[i].reason;
        return true;
    }
    return false;
}

static struct mqtt_verdict decode_connack(struct packet_connack *out, enum mqtt_version version, enum mqtt_sender sender,
                                          struct reader *reader)
{
    uint8_t flags;
    uint8_t code;
    if (!read_u8(reader, &flags) || !read_u8(reader, &code))
        return MALFORMED("CONNACK: cut short");
    if (version == MQTT_V31)
        flags = 0; /* a reserved byte there, without meaning */
    if (flags > 1)
        return MALFORMED("CONNACK: reserved flags set [MQTT-3.2.2-1]");
    out->session_present = flags != 0;
    if (version == MQTT_V5) {
        if (!mqtt_reason_is_allowed(MQTT_CONNACK, sender, code))
            return PROTOCOL_ERROR("CONNACK: undefined reason code [MQTT-3.2.2-8]");
        out->reason = code;
    } else if (!connack_reason(&out->reason, code)) {
        return PROTOCOL_ERROR("CONNACK: undefined return code [MQTT-3.2.2-6 of 3.1.1]");
    }
    if (out->session_present && out->reason != MQTT_REASON_SUCCESS)
        return PROTOCOL_ERROR("CONNACK: session present with an error [MQTT-3.2.2-6]");
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, MQTT_CONNACK, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    return reader_left(reader) == 0 ? mqtt_ok() : MALFORMED("CONNACK: bytes after its end");
}

/* ---- PUBLISH ---- */

enum {
    PUBLISH_RETAIN = 0x1,
    PUBLISH_QOS_SHIFT = 1,
    PUBLISH_DUP = 0x8,
};

static struct mqtt_verdict decode_publish(struct packet_publish *out, uint8_t header_flags, enum mqtt_version version,
                                          enum mqtt_sender sender, struct reader *reader)
{
    out->retain = (header_flags & PUBLISH_RETAIN) != 0;
    out->dup = (header_flags & PUBLISH_DUP) != 0;
    out->qos = header_flags >> PUBLISH_QOS_SHIFT & 3;
    if (out->qos == 3)
        return MALFORMED("PUBLISH: QoS 3 [MQTT-3.3.1-4]");
    if (out->dup && out->qos == 0)
        return MALFORMED("PUBLISH: DUP with QoS 0 [MQTT-3.3.1-2]");
    if (!read_text(reader, &out->topic))
        return MALFORMED("PUBLISH: topic missing or cut short [MQTT-3.3.2-1]");
    out->packet_id = 0;
    if (out->qos != 0) {
        if (!read_u16(reader, &out->packet_id))
            return MALFORMED("PUBLISH: packet identifier missing");
        if (out->packet_id == 0)
            return PROTOCOL_ERROR("PUBLISH: packet identifier 0 [MQTT-2.2.1-3]");
    }
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, MQTT_PUBLISH, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    if (out->topic.size == 0 && version == MQTT_V5) {
        if (!(out->properties.present & MQTT_PROPERTY_BIT(TOPIC_ALIAS)))
            return PROTOCOL_ERROR("PUBLISH: neither topic nor topic alias [3.3.2.1]");
    } else {
        verdict = topic_name_check(out->topic);
        if (verdict.judgement != MQTT_OK)
            return verdict;
    }
    out->payload = span_of(reader->at, reader_left(reader));
    return mqtt_ok();
}

/* ---- PUBACK, PUBREC, PUBREL, PUBCOMP ---- */

static struct mqtt_verdict decode_ack(struct packet_ack *out, enum mqtt_packet_type type, enum mqtt_version version,
                                      enum mqtt_sender sender, struct reader *reader)
{
    if (!read_u16(reader, &out->packet_id))
        return MALFORMED("acknowledgement: packet identifier missing");
    if (out->packet_id == 0)
        return PROTOCOL_ERROR("acknowledgement: packet identifier 0 [MQTT-2.2.1-5]");
    out->reason = MQTT_REASON_SUCCESS;
    properties_init(&out->properties);
    if (reader_left(reader) == 0)
        return mqtt_ok();
    if (version != MQTT_V5)
        return MALFORMED("acknowledgement: bytes after the packet identifier");
    uint8_t code = *reader->at++;
    if (!mqtt_reason_is_allowed(type, sender, code))
        return PROTOCOL_ERROR("acknowledgement: undefined reason code [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]");
    out->reason = code;
    if (reader_left(reader) == 0)
        return mqtt_ok();
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, type, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    return reader_left(reader) == 0 ? mqtt_ok() : MALFORMED("acknowledgement: bytes after its end");
}

/* ---- SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK ---- */

enum {
    OPTION_QOS = 0x03,
    OPTION_NO_LOCAL = 0x04,
    OPTION_RETAIN_AS_PUBLISHED = 0x08,
    OPTION_RETAIN_HANDLING_SHIFT = 4,
    OPTION_RESERVED = 0xc0,
};

static struct mqtt_verdict check_options(uint8_t options, const struct topic_filter *filter, enum mqtt_version version)
{
    if (version == MQTT_V5 && (options & OPTION_RESERVED))
        return MALFORMED("SUBSCRIBE: reserved option bits set [MQTT-3.8.3-5]");
    if (version == MQTT_V311 && (options & ~OPTION_QOS))
        return MALFORMED("SUBSCRIBE: reserved bits beside the QoS [MQTT-3-8.3-4 of 3.1.1]");
    if ((options & OPTION_QOS) == 3)
        return PROTOCOL_ERROR("SUBSCRIBE: QoS 3 [3.8.3.1] [MQTT-3-8.3-4 of 3.1.1]");
    if (version != MQTT_V5)
        return mqtt_ok();
    if ((options >> OPTION_RETAIN_HANDLING_SHIFT & 3) == 3)
        return PROTOCOL_ERROR("SUBSCRIBE: retain handling 3 [3.8.3.1]");
    if ((options & OPTION_NO_LOCAL) && filter->is_shared)
        return PROTOCOL_ERROR("SUBSCRIBE: No Local on a shared subscription [MQTT-3.8.3-4]");
    return mqtt_ok();
}

static struct mqtt_verdict decode_subscribe(struct packet_subscribe *out, enum mqtt_version version, enum mqtt_sender sender,
                                            struct reader *reader)
{
    if (!read_u16(reader, &out->packet_id))
        return MALFORMED("SUBSCRIBE: packet identifier missing");
    if (out->packet_id == 0)
        return PROTOCOL_ERROR("SUBSCRIBE: packet identifier 0 [MQTT-2.2.1-3]");
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, MQTT_SUBSCRIBE, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    out->filters = span_of(reader->at, reader_left(reader));
    out->filter_count = 0;
    while (reader_left(reader) > 0) {
        struct span text;
        struct topic_filter filter;
        uint8_t options;
        if (!read_text(reader, &text) || !read_u8(reader, &options))
            return MALFORMED("SUBSCRIBE: filter or its options cut short");
        verdict = topic_filter_parse(&filter, text);
        if (verdict.judgement == MQTT_OK)
            verdict = check_options(options, &filter, version);
        if (verdict.judgement != MQTT_OK)
            return verdict;
        out->filter_count++;
    }
    return out->filter_count > 0 ? mqtt_ok() : PROTOCOL_ERROR("SUBSCRIBE: no filter [MQTT-3.8.3-2]");
}

bool packet_subscribe_next(struct span *rest, struct packet_subscription *out)
{
    struct reader reader = {rest->data, rest->data + rest->size};
    if (rest->size == 0 || !read_text(&reader, &out->text) || !read_u8(&reader, &out->options))
        return false;
    *rest = span_of(reader.at, reader_left(&reader));
    if (topic_filter_parse(&out->filter, out->text).judgement != MQTT_OK)
        return false;
    out->qos = out->options & OPTION_QOS;
    out->no_local = (out->options & OPTION_NO_LOCAL) != 0;
    out->retain_as_published = (out->options & OPTION_RETAIN_AS_PUBLISHED) != 0;
    out->retain_handling = out->options >> OPTION_RETAIN_HANDLING_SHIFT & 3;
    return true;
}

static struct mqtt_verdict decode_unsubscribe(struct packet_unsubscribe *out, enum mqtt_version version, enum mqtt_sender sender,
                                              struct reader *reader)
{
    if (!read_u16(reader, &out->packet_id))
        return MALFORMED("UNSUBSCRIBE: packet identifier missing");
    if (out->packet_id == 0)
        return PROTOCOL_ERROR("UNSUBSCRIBE: packet identifier 0 [MQTT-2.2.1-3]");
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, MQTT_UNSUBSCRIBE, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    out->filters = span_of(reader->at, reader_left(reader));
    out->filter_count = 0;
    while (reader_left(reader) > 0) {
        struct span text;
        struct topic_filter filter;
        if (!read_text(reader, &text))
            return MALFORMED("UNSUBSCRIBE: filter cut short");
        verdict = topic_filter_parse(&filter, text);
        if (verdict.judgement != MQTT_OK)
            return verdict;
        out->filter_count++;
    }
    return out->filter_count > 0 ? mqtt_ok() : PROTOCOL_ERROR("UNSUBSCRIBE: no filter [MQTT-3.10.3-2]");
}

bool packet_unsubscribe_next(struct span *rest, struct span *filter_out)
{
    struct reader reader = {rest->data, rest->data + rest->size};
    if (rest->size == 0 || !read_text(&reader, filter_out))
        return false;
    *rest = span_of(reader.at, reader_left(&reader));
    return true;
}

size_t packet_put_unsubscription(uint8_t *at, struct span filter)
{
    CHECK(filter.size <= UINT16_MAX);
    store_be16(at, (uint16_t)filter.size);
    if (filter.size)
        memcpy(at + 2, filter.data, filter.size);
    return 2 + filter.size;
}

size_t packet_put_subscription(uint8_t *at, struct span filter, uint8_t options)
{
    size_t size = packet_put_unsubscription(at, filter);
    at[size] = options;
    return size + 1;
}

static bool suback_code_is_allowed(enum mqtt_packet_type type, enum mqtt_version version, enum mqtt_sender sender, uint8_t code)
{
    if (version == MQTT_V5)
        return mqtt_reason_is_allowed(type, sender, code);
    return code <= 2 || code == 0x80;
}

static struct mqtt_verdict decode_suback(struct packet_suback *out, enum mqtt_packet_type type, enum mqtt_version version,
                                         enum mqtt_sender sender, struct reader *reader)
{
    if (!read_u16(reader, &out->packet_id))
        return MALFORMED("SUBACK, UNSUBACK: packet identifier missing");
    if (out->packet_id == 0)
        return PROTOCOL_ERROR("SUBACK, UNSUBACK: packet identifier 0 [MQTT-2.2.1-6]");
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, type, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    out->codes = span_of(reader->at, reader_left(reader));
    if (type == MQTT_UNSUBACK && version != MQTT_V5)
        return out->codes.size == 0 ? mqtt_ok() : MALFORMED("UNSUBACK: bytes after the packet identifier");
    if (out->codes.size == 0)
        return MALFORMED("SUBACK, UNSUBACK: no code [MQTT-3.8.4-6]");
    for (size_t i = 0; i < out->codes.size; i++)
        if (!suback_code_is_allowed(type, version, sender, out->codes.data[i]))
            return PROTOCOL_ERROR("SUBACK, UNSUBACK: undefined code [MQTT-3.9.3-2] [MQTT-3.11.3-2]");
    return mqtt_ok();
}

/* ---- DISCONNECT, AUTH ---- */

static struct mqtt_verdict decode_disconnect(struct packet_disconnect *out, enum mqtt_version version, enum mqtt_sender sender,
                                             struct reader *reader)
{
    out->reason = MQTT_REASON_NORMAL_DISCONNECTION;
    properties_init(&out->properties);
    if (version != MQTT_V5 && sender == MQTT_FROM_SERVER)
        return PROTOCOL_ERROR("DISCONNECT: servers send none below MQTT 5");
    if (reader_left(reader) == 0)
        return mqtt_ok();
    if (version != MQTT_V5)
        return MALFORMED("DISCONNECT: bytes after the fixed header");
    uint8_t code = *reader->at++;
    if (!mqtt_reason_is_allowed(MQTT_DISCONNECT, sender, code))
        return PROTOCOL_ERROR("DISCONNECT: undefined reason code [MQTT-3.14.2-1]");
    out->reason = code;
    if (reader_left(reader) == 0)
        return mqtt_ok();
    struct mqtt_verdict verdict = read_properties(reader, &out->properties, version, MQTT_DISCONNECT, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    return reader_left(reader) == 0 ? mqtt_ok() : MALFORMED("DISCONNECT: bytes after its end");
}

static struct mqtt_verdict decode_auth(struct packet_auth *out, enum mqtt_sender sender, struct reader *reader)
{
    uint8_t code = MQTT_REASON_SUCCESS;
    bool is_empty = !read_u8(reader, &code);
    out->reason = code;
    properties_init(&out->properties);
    if (!mqtt_reason_is_allowed(MQTT_AUTH, sender, code))
        return PROTOCOL_ERROR("AUTH: undefined reason code [MQTT-3.15.2-1]");
    if (is_empty)
        return mqtt_ok(); /* a server's success without anything more */
    if (reader_left(reader) > 0) {
        struct mqtt_verdict verdict = read_properties(reader, &out->properties, MQTT_V5, MQTT_AUTH, sender);
        if (verdict.judgement != MQTT_OK)
            return verdict;
    }
    if (reader_left(reader) > 0)
        return MALFORMED("AUTH: bytes after its end");
    if (!(out->properties.present & MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD)))
        return PROTOCOL_ERROR("AUTH: no authentication method [MQTT-4.12.0-5]");
    return mqtt_ok();
}

/* ---- Any packet ---- */

static struct mqtt_verdict check_header(const struct frame *frame, enum mqtt_version version, enum mqtt_sender sender)
{
    const struct mqtt_packet_spec *spec = mqtt_packet_spec(frame->type);
    if (!spec)
        return MALFORMED("packet type 0 is reserved");
    if (version < spec->version_first)
        return MALFORMED("AUTH: reserved packet type below MQTT 5");
    if (!(sender == MQTT_FROM_CLIENT ? spec->from_client : spec->from_server))
        return PROTOCOL_ERROR("packet of a type that this side does not send");
    uint8_t mask = version == MQTT_V31 ? spec->mask_v31 : spec->mask;
    if (frame->type != MQTT_CONNECT && (frame->flags & mask) != spec->flags)
        return MALFORMED("fixed header: wrong flags [MQTT-2.1.3-1] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] "
                         "[MQTT-3.15.1-1]");
    return mqtt_ok();
}

struct mqtt_verdict packet_decode(struct packet *out, enum mqtt_version version, enum mqtt_sender sender, const struct frame *frame,
                                  const uint8_t *data)
{
    struct reader reader = {data + frame->header_size, data + frame->size};
    out->type = frame->type;
    if (__builtin_expect(frame->type == MQTT_PUBLISH, 1))
        return decode_publish(&out->publish, frame->flags, version, sender, &reader);
    if (frame->type == MQTT_CONNECT) {
        out->connect.version = MQTT_V5;
        version = MQTT_V5; /* its own is in it */
    }
    struct mqtt_verdict verdict = check_header(frame, version, sender);
    if (verdict.judgement != MQTT_OK)
        return verdict;
    switch (frame->type) {
    case MQTT_CONNECT:
        return decode_connect(&out->connect, frame->flags, sender, &reader);
    case MQTT_CONNACK:
        return decode_connack(&out->connack, version, sender, &reader);
    case MQTT_PUBACK:
    case MQTT_PUBREC:
    case MQTT_PUBREL:
    case MQTT_PUBCOMP:
        return decode_ack(&out->ack, frame->type, version, sender, &reader);
    case MQTT_SUBSCRIBE:
        return decode_subscribe(&out->subscribe, version, sender, &reader);
    case MQTT_SUBACK:
    case MQTT_UNSUBACK:
        return decode_suback(&out->suback, frame->type, version, sender, &reader);
    case MQTT_UNSUBSCRIBE:
        return decode_unsubscribe(&out->unsubscribe, version, sender, &reader);
    case MQTT_PINGREQ:
    case MQTT_PINGRESP:
        return reader_left(&reader) == 0 ? mqtt_ok() : MALFORMED("PINGREQ, PINGRESP: bytes after the fixed header");
    case MQTT_DISCONNECT:
        return decode_disconnect(&out->disconnect, version, sender, &reader);
    case MQTT_AUTH:
        return decode_auth(&out->auth, sender, &reader);
    case MQTT_WILL:
    case MQTT_PUBLISH:
        break;
    }
    UNREACHABLE();
}

/* ---- Encoding ---- */

/* Writes at `at`, or only counts when it is NULL. */
struct writer {
    uint8_t *at;
    size_t size;
};

static void write_u8(struct writer *writer, uint8_t value)
{
    if (writer->at)
        writer->at[writer->size] = value;
    writer->size += 1;
}

static void write_u16(struct writer *writer, uint16_t value)
{
    if (writer->at)
        store_be16(writer->at + writer->size, value);
    writer->size += 2;
}

static void write_bytes(struct writer *writer, struct span bytes)
{
    if (writer->at && bytes.size)
        memcpy(writer->at + writer->size, bytes.data, bytes.size);
    writer->size += bytes.size;
}

static void write_text(struct writer *writer, struct span text)
{
    CHECK(text.size <= UINT16_MAX);
    write_u16(writer, (uint16_t)text.size);
    write_bytes(writer, text);
}

/* A block with its length; a length of 0 where there is nothing [MQTT-2.2.2-1]. left_out: bits of what the peer cannot take. */
static void write_properties(struct writer *writer, const struct mqtt_properties *properties, enum mqtt_version version, uint64_t left_out)
{
    if (version != MQTT_V5)
        return;
    struct mqtt_properties kept = *properties;
    kept.present &= ~left_out;
    size_t size = properties_size(&kept);
    if (size > MQTT_VARINT_MAX) { /* cannot be expressed; the count alone makes the packet too large */
        CHECK(!writer->at);
        writer->size += size;
        return;
    }
    uint8_t *at = writer->at ? writer->at + writer->size : NULL;
    size_t prefix_size = mqtt_varint_size((uint32_t)size);
    if (at) {
        mqtt_varint_put(at, (uint32_t)size);
        properties_put(at + prefix_size, &kept);
    }
    writer->size += prefix_size + size;
}

static void write_connect(struct writer *writer, const struct packet_connect *connect)
{
    uint8_t flags = 0;
    if (connect->clean_start)
        flags |= CONNECT_CLEAN_START;
    if (connect->has_will)
        flags |= (uint8_t)(CONNECT_WILL | connect->will_qos << CONNECT_WILL_QOS_SHIFT | (connect->will_retain ? CONNECT_WILL_RETAIN : 0));
    if (connect->has_password)
        flags |= CONNECT_PASSWORD;
    if (connect->has_user_name)
        flags |= CONNECT_USER_NAME;
    write_text(writer, connect->version == MQTT_V31 ? SPAN_LITERAL("MQIsdp") : SPAN_LITERAL("MQTT"));
    write_u8(writer, (uint8_t)connect->version);
    write_u8(writer, flags);
    write_u16(writer, connect->keep_alive_s);
    write_properties(writer, &connect->properties, connect->version, 0);
    write_text(writer, connect->client_id);
    if (connect->has_will) {
        write_properties(writer, &connect->will_properties, connect->version, 0);
        write_text(writer, connect->will_topic);
        write_text(writer, connect->will_payload);
    }
    if (connect->has_user_name)
        write_text(writer, connect->user_name);
    if (connect->has_password)
        write_text(writer, connect->password);
}

/* Reason code and properties at the end of an acknowledgement, a DISCONNECT or an AUTH: what says nothing is left out. */
static void write_reason(struct writer *writer, enum mqtt_reason reason, const struct mqtt_properties *properties,
                         enum mqtt_version version, uint64_t left_out)
{
    bool has_properties = (properties->present & ~left_out) != 0;
    if (version != MQTT_V5 || (reason == MQTT_REASON_SUCCESS && !has_properties))
        return;
    write_u8(writer, (uint8_t)reason);
    if (has_properties)
        write_properties(writer, properties, version, left_out);
}

static void write_suback_codes(struct writer *writer, const struct packet *packet, enum mqtt_version version)
{
    struct span codes = packet->suback.codes;
    if (version == MQTT_V5) {
        write_bytes(writer, codes);
        return;
    }
    if (packet->type == MQTT_UNSUBACK)
        return;
    for (size_t i = 0; i < codes.size; i++)
        write_u8(writer, codes.data[i] >= 0x80 ? 0x80 : codes.data[i]);
}

/* Everything after the fixed header. */
static void write_body(struct writer *writer, const struct packet *packet, enum mqtt_version version, uint64_t left_out)
{
    switch (packet->type) {
    case MQTT_CONNECT:
        write_connect(writer, &packet->connect);
        break;
    case MQTT_CONNACK: {
        const struct packet_connack *connack = &packet->connack;
        write_u8(writer, connack->session_present && connack->reason == MQTT_REASON_SUCCESS && version != MQTT_V31);
        write_u8(writer, (uint8_t)(version == MQTT_V5 ? (int)connack->reason : packet_connack_return_code(connack->reason)));
        write_properties(writer, &connack->properties, version, left_out);
        break;
    }
    case MQTT_PUBLISH:
        write_text(writer, packet->publish.topic);
        if (packet->publish.qos != 0)
            write_u16(writer, packet->publish.packet_id);
        write_properties(writer, &packet->publish.properties, version, 0);
        write_bytes(writer, packet->publish.payload);
        break;
    case MQTT_PUBACK:
    case MQTT_PUBREC:
    case MQTT_PUBREL:
    case MQTT_PUBCOMP:
        write_u16(writer, packet->ack.packet_id);
        write_reason(writer, packet->ack.reason, &packet->ack.properties, version, left_out);
        break;
    case MQTT_SUBSCRIBE:
        write_u16(writer, packet->subscribe.packet_id);
        write_properties(writer, &packet->subscribe.properties, version, 0);
        write_bytes(writer, packet->subscribe.filters);
        break;
    case MQTT_SUBACK:
    case MQTT_UNSUBACK:
        write_u16(writer, packet->suback.packet_id);
        write_properties(writer, &packet->suback.properties, version, left_out);
        write_suback_codes(writer, packet, version);
        break;
    case MQTT_UNSUBSCRIBE:
        write_u16(writer, packet->unsubscribe.packet_id);
        write_properties(writer, &packet->unsubscribe.properties, version, 0);
        write_bytes(writer, packet->unsubscribe.filters);
        break;
    case MQTT_PINGREQ:
    case MQTT_PINGRESP:
        break;
    case MQTT_DISCONNECT:
        write_reason(writer, packet->disconnect.reason, &packet->disconnect.properties, version, left_out);
        break;
    case MQTT_AUTH:
        write_reason(writer, packet->auth.reason, &packet->auth.properties, version, left_out);
        break;
    case MQTT_WILL:
        UNREACHABLE();
    }
}

/* Does the packet exist in this version? */
static bool can_encode(const struct packet *packet, enum mqtt_version version)
{
    if (version == MQTT_V5)
        return true;
    if (packet->type == MQTT_AUTH)
        return false;
    return packet->type != MQTT_CONNACK || packet_connack_return_code(packet->connack.reason) >= 0;
}

/* What a packet gives up, step by step, to fit the peer's Maximum Packet Size. */
static bool may_leave_out(enum mqtt_packet_type type)
{
    return type != MQTT_CONNECT && type != MQTT_PUBLISH && type != MQTT_SUBSCRIBE && type != MQTT_UNSUBSCRIBE;
}

/* Decide what to leave out. Returns the size of the body; false when it fits in no way. */
static bool plan(uint32_t *body_size_out, uint64_t *left_out_out, const struct packet *packet, enum mqtt_version version,
                 uint32_t packet_size_max)
{
    static const uint64_t steps[] = {
        0,
        MQTT_PROPERTY_BIT(USER_PROPERTY),
        MQTT_PROPERTY_BIT(USER_PROPERTY) | MQTT_PROPERTY_BIT(REASON_STRING),
    };
    if (!can_encode(packet, version))
        return false;
    size_t step_count = version == MQTT_V5 && may_leave_out(packet->type) ? sizeof steps / sizeof steps[0] : 1;
    for (size_t i = 0; i < step_count; i++) {
        struct writer counter = {NULL, 0};
        write_body(&counter, packet, version, steps[i]);
        if (counter.size > MQTT_VARINT_MAX || frame_size((uint32_t)counter.size) > packet_size_max)
            continue;
        *body_size_out = (uint32_t)counter.size;
        *left_out_out = steps[i];
        return true;
    }
    return false;
}

static uint8_t header_flags(const struct packet *packet)
{
    if (packet->type != MQTT_PUBLISH)
        return mqtt_packet_spec(packet->type)->flags;
    const struct packet_publish *publish = &packet->publish;
    return (uint8_t)((publish->dup ? PUBLISH_DUP : 0) | publish->qos << PUBLISH_QOS_SHIFT | (publish->retain ? PUBLISH_RETAIN : 0));
}

uint32_t packet_encode_size(const struct packet *packet, enum mqtt_version version, uint32_t packet_size_max)
{
    uint32_t body_size;
    uint64_t left_out;
    return plan(&body_size, &left_out, packet, version, packet_size_max) ? frame_size(body_size) : 0;
}

uint32_t packet_encode(uint8_t *at, const struct packet *packet, enum mqtt_version version, uint32_t packet_size_max)
{
    uint32_t body_size;
    uint64_t left_out;
    if (!plan(&body_size, &left_out, packet, version, packet_size_max))
        return 0;
    struct writer writer = {at, frame_put(at, packet->type, header_flags(packet), body_size)};
    write_body(&writer, packet, version, left_out);
    CHECK(writer.size == frame_size(body_size));
    return (uint32_t)writer.size;
}

size_t packet_put_ack(uint8_t *at, enum mqtt_packet_type type, enum mqtt_version version, uint16_t packet_id, enum mqtt_reason reason)
{
    bool has_reason = version == MQTT_V5 && reason != MQTT_REASON_SUCCESS;
    at[0] = (uint8_t)((unsigned)type << 4 | (type == MQTT_PUBREL ? 2 : 0));
    at[1] = has_reason ? 3 : 2;
    store_be16(at + 2, packet_id);
    if (!has_reason)
        return 4;
    at[4] = (uint8_t)reason;
    return 5;
}

/* ---- The head of an outgoing PUBLISH ---- */

/* Sizes of a head's parts. */
struct head_sizes {
    size_t properties; /* the block without its length */
    size_t variable;   /* variable header, properties with their length included */
    size_t remaining;
};

static struct head_sizes head_sizes(const struct packet_publish_head *head, enum mqtt_version version)
{
    struct head_sizes sizes = {0};
    sizes.variable = 2 + head->topic.size + (head->qos != 0 ? 2 : 0);
    if (version == MQTT_V5) {
        sizes.properties = properties_forward_own_size(&head->forward) + head->forward.forwardable.size;
        sizes.variable += (sizes.properties <= MQTT_VARINT_MAX ? mqtt_varint_size((uint32_t)sizes.properties) : 0) + sizes.properties;
    }
    sizes.remaining = sizes.variable + head->payload_size;
    return sizes;
}

size_t packet_publish_head_size(const struct packet_publish_head *head, enum mqtt_version version, uint32_t *packet_size_out)
{
    struct head_sizes sizes = head_sizes(head, version);
    if (sizes.remaining > MQTT_VARINT_MAX)
        return 0;
    uint32_t packet_size = frame_size((uint32_t)sizes.remaining);
    if (packet_size_out)
        *packet_size_out = packet_size;
    return packet_size - head->payload_size;
}

size_t packet_publish_head_put(uint8_t *at, const struct packet_publish_head *head, enum mqtt_version version)
{
    struct head_sizes sizes = head_sizes(head, version);
    CHECK(sizes.remaining <= MQTT_VARINT_MAX);
    CHECK(head->topic.size <= TOPIC_SIZE_MAX);
    unsigned flags = (head->dup ? PUBLISH_DUP : 0u) | (unsigned)head->qos << PUBLISH_QOS_SHIFT | (head->retain ? PUBLISH_RETAIN : 0u);
    uint8_t *to = at + frame_put(at, MQTT_PUBLISH, flags, (uint32_t)sizes.remaining);
    store_be16(to, (uint16_t)head->topic.size);
    to += 2;
    if (head->topic.size)
        memcpy(to, head->topic.data, head->topic.size);
    to += head->topic.size;
    if (head->qos != 0) {
        store_be16(to, head->packet_id);
        to += 2;
    }
    if (version == MQTT_V5) {
        to += mqtt_varint_put(to, (uint32_t)sizes.properties);
        to += properties_forward_own_put(to, &head->forward);
        if (head->forward.forwardable.size)
            memcpy(to, head->forward.forwardable.data, head->forward.forwardable.size);
        to += head->forward.forwardable.size;
    }
    return (size_t)(to - at);
}
