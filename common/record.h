/* The record: what the broker writes into its log and the sink (or the forwarder to Kafka) reads. The one thing both programs agree on.
 *
 * One PUBLISH is one record that carries everything it causes, so that a crash leaves all of a message's effects or none. On disk a record
 * is a size, a type and fields of (tag, value); a field that is absent means zero or empty, a field nobody knows is skipped unless its
 * "must understand" bit is set. docs/formats.md has the byte table. `struct record` is the decoded form: spans borrowed from whoever owns
 * the bytes, no allocation anywhere.
 *
 *     uint8_t *at = log_block_reserve(block, record_size(&rec));    encode straight into the log block
 *     record_encode(at, &rec);
 *     ...
 *     enum err err = record_decode(&rec, span);                      spans point into `span`
 *
 * Invariants: record_decode(record_encode(r)) gives r back; the payload is the last field, so that a large one need not be copied to be cut
 * (record_head_size, record_encode_head). Decoding reads nothing outside the span, whatever the bytes are. Thread: any. Pure. */
#ifndef TIDEGATE_COMMON_RECORD_H
#define TIDEGATE_COMMON_RECORD_H

#include "common/bytes.h"
#include "common/err.h"

/* Bytes of a whole record: an MQTT packet at its legal maximum (256 MiB) plus 64 MiB for what we add (recipients above all). */
#define RECORD_SIZE_MAX ((size_t)320 << 20)
#define RECORD_SIZE_MIN 5
/* Of a record beside its texts: no more than 14 numbers and 10 sizes with their tags, and the correlation id. */
#define RECORD_OVERHEAD_MAX 320
#define RECORD_CORRELATION_SIZE 16
#define RECORD_CORRELATION_TEXT_SIZE (2 * RECORD_CORRELATION_SIZE + 1)

/* What a record says. A reader passes over a type that it does not know when the number is below 128, and stops with ERR_VERSION from 128
 * on. `session` is always the number of the session that the record is about, `subject_sequence` a message's own sequence. */
enum record_type {
    RECORD_PUBLISH = 1,        /* a message and all it causes */
    RECORD_PARTITIONS = 2,     /* from here on the rule's telemetry is spread over partition_count partitions */
    RECORD_SESSION = 3,        /* a session was created, resumed or disconnected: client_id, received_ns = when, options as below */
    RECORD_SESSION_DELETE = 4, /* it has ended; what it wanted that is in no run was named by DROP before */
    RECORD_SUBSCRIPTION = 5,   /* topic = the filter, options: bits 0-7 as in SUBSCRIBE's options byte, 8-35 subscription identifier, 36
                                  RECORD_SUBSCRIPTION_OWED */
    RECORD_UNSUBSCRIBE = 6,    /* topic = the filter */
    RECORD_WILL = 7,        /* topic, payload, properties, client_id, user_name, qos, retain, expiry_ns = interval (not deadline), options:
                               bits 0-31 delay in s, bit 32 has an expiry interval; will_session: it was the will of that session, which
                               has none now, and is still its publisher */
    RECORD_WILL_DELETE = 8, /* it will not be published */
    RECORD_ACK = 9,         /* the session is done with subject_sequence and `positions`; with packet_id: an outgoing QoS 2 is complete */
    RECORD_DROP = 10,       /* the session will not get the messages `positions`, reason in options (the metric's number) */
    RECORD_SENT = 11,       /* outgoing QoS 2: subject_sequence goes under packet_id */
    RECORD_RECEIVED = 12,   /* PUBREC of an outgoing QoS 2: packet_id, subject_sequence; the body is no longer wanted */
    RECORD_RELEASED = 13,   /* PUBREL of an incoming QoS 2: packet_id */
    RECORD_BEGUN = 14,      /* a shared group's message belongs to a member from here on: session, shared_groups, subject */
    RECORD_DEVICE = 15,     /* device registry: device, session */
    RECORD_RETAINED_GIVEN = 17, /* all retained values that the session's subscriptions so far are owed have records of their own */
    RECORD_TYPE_MUST_UNDERSTAND = 128,
};

/* options of RECORD_SESSION. */
#define RECORD_SESSION_EXPIRY_MASK UINT64_C(0xffffffff) /* session expiry interval in s */
#define RECORD_SESSION_CONNECTED (UINT64_C(1) << 32)    /* it has a connection; otherwise it is away since received_ns */
#define RECORD_SESSION_PROTOCOL_SHIFT 40                /* 8 bits: 3, 4 or 5 */
/* options of RECORD_WILL. */
#define RECORD_WILL_DELAY_MASK UINT64_C(0xffffffff)
#define RECORD_WILL_HAS_EXPIRY (UINT64_C(1) << 32)

/* options of RECORD_SUBSCRIPTION: the retained values of its topics are still to be given, until RETAINED_GIVEN says that they were. In
 * place of a subscription that is owed some, one with retain handling 1 or 2 is owed the same. */
#define RECORD_SUBSCRIPTION_OWED (UINT64_C(1) << 36)
#define RECORD_SUBSCRIPTION_RETAIN_HANDLING UINT64_C(0x30)

/* How the payload of telemetry is to be read; from the rule. */
enum record_codec {
    RECORD_CODEC_NONE = 0, /* not telemetry */
    RECORD_CODEC_JSON = 1,
    RECORD_CODEC_NUMBER = 2,
    RECORD_CODEC_CBOR = 3,
    RECORD_CODEC_RAW = 4,
};

/* One persistent session that gets the message (LOG 10: a number that is never reused). */
struct record_recipient {
    uint64_t session; /* its number */
    uint8_t qos;      /* granted, 0..2 */
    uint8_t options;  /* as in SUBSCRIBE: bit 2 no local, bit 3 retain as published; RECORD_RECIPIENT_RETAINED */
    struct span ids;  /* subscription identifiers, LEB128 one after the other; record_id_next() reads them */
};

/* The message is given as a retained one, for a new subscription: RETAIN is set. Such a record is a copy of a retained PUBLISH: it has no
 * retained number, because it changes nobody's value, and `options` is the number of the PUBLISH that it is a copy of. */
#define RECORD_RECIPIENT_RETAINED 0x80u

/* Upper bound of what record_recipient_put writes, besides `ids`. */
#define RECORD_RECIPIENT_SIZE_MAX (2 * VARINT_SIZE_MAX + 2)

/* A record, decoded. Zero or empty means absent, everywhere. */
struct record {
    uint8_t type; /* enum record_type */

    /* The message. */
    uint8_t qos; /* 0..2, as published */
    bool retain; /* as received */
    bool dup;    /* as received */
    struct span topic;
    struct span payload;
    struct span properties;                       /* MQTT 5 PUBLISH properties as received, without their length; empty for 3.1.1 */
    int64_t received_ns;                          /* wall clock, ns since 1970, strictly increasing per shard */
    int64_t expiry_ns;                            /* wall clock deadline of the message expiry interval; 0: none */
    uint16_t packet_id;                           /* incoming QoS 2: the publisher's identifier */
    uint64_t retained_number;                     /* process-wide number of a retained PUBLISH; 0: not retained */
    uint64_t will_session;                        /* this PUBLISH is the will of that session, and deletes it; see WILL, too */
    bool has_correlation;                         /* */
    uint8_t correlation[RECORD_CORRELATION_SIZE]; /* id that follows the message into every log line */

    /* The publisher; of a record about a session: that session. */
    struct span client_id;
    uint64_t session;

    /* Telemetry. partition_count 0: no rule matched. */
    struct span rule;         /* its name */
    uint32_t rule_index;      /* in file order at the time */
    struct span device;       /* device id */
    uint32_t partition;       /* murmur2(device) mod partition_count */
    uint32_t partition_count; /* */
    uint8_t codec;            /* enum record_codec */

    /* Who gets it from the durable side. */
    struct span recipients;    /* written by record_recipient_put, read by record_recipient_next */
    struct span shared_groups; /* room: the encoding comes with shared subscriptions on disk */

    /* Records about another record, and small state. */
    uint32_t subject_epoch;
    uint64_t subject_sequence;
    uint64_t options;
    struct span positions; /* DROP, ACK: sequences of messages, common/position_list.h */
    struct span user_name; /* WILL: of the client, for the rules that take the device from it */
};

/* Whether the checkpoint has to see the record; telemetry that nobody else wants is passed over. */
bool record_is_state(const struct record *rec);

/* Bytes of the encoded record, RECORD_SIZE_MIN..; compare with RECORD_SIZE_MAX before logging. */
size_t record_size(const struct record *rec);

/* No less than record_size(), at a fraction of its cost: to encode where there is plenty of room. */
static inline size_t record_size_bound(const struct record *rec)
{
    return RECORD_OVERHEAD_MAX + rec->topic.size + rec->payload.size + rec->properties.size + rec->client_id.size + rec->rule.size +
           rec->device.size + rec->recipients.size + rec->shared_groups.size + rec->positions.size + rec->user_name.size;
}

/* Encode into exactly record_size(rec) bytes at `at`; returns that size. */
size_t record_encode(uint8_t *at, const struct record *rec);

/* For a record larger than a block: everything but the payload's bytes, which follow the head as they are. The head's size field already
 * counts them. record_size() == record_head_size() + payload.size. */
size_t record_head_size(const struct record *rec);
size_t record_encode_head(uint8_t *at, const struct record *rec);

/* An ACK that grows: what a session acknowledges in a row is one record, written as it comes. It names messages by positions alone, and is
 * whole after each call. *last is the sequence named last, and is set. */
#define RECORD_ACK_SIZE_MAX (RECORD_SIZE_MIN + 1 + VARINT_SIZE_MAX + 2 + VARINT_SIZE_MAX)
/* With its first message. Room for RECORD_ACK_SIZE_MAX; returns the bytes used. */
size_t record_ack_begin(uint8_t *at, uint64_t *last, uint64_t session, uint64_t sequence);
/* One more. at: the record, with room for VARINT_SIZE_MAX behind it. Returns the bytes that it grew by, 0 when it has as many as it may. */
size_t record_ack_grow(uint8_t *at, uint64_t *last, uint64_t sequence);

/* Decode the record that is exactly `bytes`.
 * rec_out  spans borrowed from `bytes`. On ERR_VERSION the type is set.
 * Returns 0, ERR_CORRUPT, ERR_VERSION (a field or type that must be understood is unknown). */
must_check enum err record_decode(struct record *rec_out, struct span bytes);

/* Where client id, rule, device and recipients of a decoded record stand in its encoding, one behind the other, to be left out: what is
 * before them and what is behind them, together and with their size in place of the first four bytes, are the record without them. False:
 * it has none, or they are not encoded as record_encode() does. */
bool record_find_parties(struct span *fields_out, struct span bytes, const struct record *rec);

/* Take the first record off `bytes` (records one after the other, as in a block's body).
 * Returns 0, ERR_AGAIN when `bytes` is empty, ERR_CORRUPT when the size field does not fit. */
must_check enum err record_next(struct span *record_out, struct span *bytes);

/* Append one recipient at `at` (room for RECORD_RECIPIENT_SIZE_MAX + ids.size); returns the bytes used. */
size_t record_recipient_put(uint8_t *at, const struct record_recipient *recipient);

/* Take the first recipient off `recipients`. Returns 0, ERR_AGAIN at the end, ERR_CORRUPT. */
must_check enum err record_recipient_next(struct record_recipient *recipient_out, struct span *recipients);

/* Take the first subscription identifier off `ids`. Returns 0, ERR_AGAIN at the end, ERR_CORRUPT. */
must_check enum err record_id_next(uint32_t *id_out, struct span *ids);

/* The correlation id as hexadecimal digits, "" when the record has none. */
void record_correlation_text(char text_out[RECORD_CORRELATION_TEXT_SIZE], const struct record *rec);

/* The type's name in lower case ("publish"), "unknown" for others. Static storage. */
const char *record_type_name(uint8_t type);

#endif
