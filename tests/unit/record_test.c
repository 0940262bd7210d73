/* record.c: what is encoded is decoded, what cannot be is refused, what is unknown is passed over. */
#include "common/position_list.h"
#include "common/record.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t rng = 7;
static uint64_t draw(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

static uint8_t noise[70000];

static struct span draw_span(size_t max)
{
    switch (draw() % 4) {
    case 0:
        return span_of(noise, 0);
    case 1:
        return span_of(noise + draw() % 100, draw() % 40);
    default:
        return span_of(noise + draw() % 100, draw() % max);
    }
}

static uint64_t draw_number(uint64_t max)
{
    uint64_t value = draw() >> draw() % 64;
    return draw() % 4 == 0 ? 0 : max == UINT64_MAX ? value : value % (max + 1);
}

static struct record draw_record(void)
{
    struct record rec = {0};
    rec.type = (uint8_t)(1 + draw() % 15);
    rec.qos = (uint8_t)(draw() % 3);
    rec.retain = draw() & 1;
    rec.dup = draw() & 1;
    rec.topic = draw_span(300);
    rec.payload = draw_span(3000);
    rec.properties = draw_span(300);
    rec.received_ns = (int64_t)draw_number(UINT64_MAX);
    rec.expiry_ns = (int64_t)draw_number(UINT64_MAX);
    rec.packet_id = (uint16_t)draw_number(UINT16_MAX);
    rec.retained_number = draw_number(UINT64_MAX);
    rec.will_session = draw_number(UINT64_MAX);
    rec.session = draw_number(UINT64_MAX);
    rec.client_id = draw_span(200);
    rec.rule = draw_span(20);
    rec.rule_index = (uint32_t)draw_number(UINT32_MAX);
    rec.device = draw_span(50);
    rec.partition = (uint32_t)draw_number(UINT32_MAX);
    rec.partition_count = (uint32_t)draw_number(UINT32_MAX);
    rec.codec = (uint8_t)draw_number(UINT8_MAX);
    rec.recipients = draw_span(500);
    rec.shared_groups = draw_span(100);
    rec.subject_epoch = (uint32_t)draw_number(UINT32_MAX);
    rec.subject_sequence = draw_number(UINT64_MAX);
    rec.options = draw_number(UINT64_MAX);
    rec.has_correlation = draw() & 1;
    if (rec.has_correlation)
        memcpy(rec.correlation, noise + draw() % 100, sizeof rec.correlation);
    return rec;
}

static void assert_span(struct span a, struct span b)
{
    assert_int_equal(a.size, b.size);
    if (a.size)
        assert_memory_equal(a.data, b.data, a.size);
}

static void assert_record(const struct record *a, const struct record *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->qos, b->qos);
    assert_int_equal(a->retain, b->retain);
    assert_int_equal(a->dup, b->dup);
    assert_span(a->topic, b->topic);
    assert_span(a->payload, b->payload);
    assert_span(a->properties, b->properties);
    assert_true(a->received_ns == b->received_ns);
    assert_true(a->expiry_ns == b->expiry_ns);
    assert_int_equal(a->packet_id, b->packet_id);
    assert_true(a->retained_number == b->retained_number);
    assert_true(a->will_session == b->will_session);
    assert_true(a->session == b->session);
    assert_span(a->client_id, b->client_id);
    assert_span(a->rule, b->rule);
    assert_int_equal(a->rule_index, b->rule_index);
    assert_span(a->device, b->device);
    assert_int_equal(a->partition, b->partition);
    assert_int_equal(a->partition_count, b->partition_count);
    assert_int_equal(a->codec, b->codec);
    assert_span(a->recipients, b->recipients);
    assert_span(a->shared_groups, b->shared_groups);
    assert_int_equal(a->subject_epoch, b->subject_epoch);
    assert_true(a->subject_sequence == b->subject_sequence);
    assert_true(a->options == b->options);
    assert_int_equal(a->has_correlation, b->has_correlation);
    if (a->has_correlation)
        assert_memory_equal(a->correlation, b->correlation, sizeof a->correlation);
}

static void test_encode_then_decode_is_identity(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++) {
        struct record rec = draw_record(), back;
        size_t size = record_size(&rec);
        uint8_t *memory = (uint8_t *)malloc(size + 1); /* exact, so that the sanitizer sees one byte too many */
        memory[size] = 0x5a;
        assert_int_equal(record_encode(memory, &rec), size);
        assert_int_equal(memory[size], 0x5a);
        assert_int_equal(record_decode(&back, span_of(memory, size)), ERR_OK);
        assert_record(&rec, &back);
        free(memory);
    }
}

static void test_a_record_without_its_parties_is_cut_out(void **state)
{
    (void)state;
    for (int i = 0; i < 5000; i++) {
        struct record rec = draw_record(), back;
        size_t size = record_size(&rec);
        uint8_t *whole = (uint8_t *)malloc(size), *without = (uint8_t *)malloc(size);
        assert_int_equal(record_encode(whole, &rec), size);
        assert_int_equal(record_decode(&back, span_of(whole, size)), ERR_OK);
        struct span field;
        bool is_there = record_find_parties(&field, span_of(whole, size), &back);
        assert_int_equal(is_there, rec.client_id.size + rec.rule.size + rec.device.size + rec.recipients.size > 0);
        rec.client_id = rec.rule = rec.device = rec.recipients = span_of(NULL, 0);
        size_t without_size = record_encode(without, &rec);
        if (is_there) {
            memmove((uint8_t *)(uintptr_t)field.data, field.data + field.size, (size_t)(whole + size - field.data) - field.size);
            size -= field.size;
            store_le32(whole, (uint32_t)size);
        }
        assert_int_equal(size, without_size);
        assert_memory_equal(whole, without, size);
        free(whole);
        free(without);
    }
}

/* Sizes in more bytes than they need are read, and not taken for ours. */
static void test_parties_of_another_encoder_are_not_found(void **state)
{
    (void)state;
    uint8_t bytes[] = {12, 0, 0, 0, RECORD_PUBLISH, 0x46, 0x84, 0x00, 7, 1, 0, 0};
    struct record rec;
    struct span field;
    assert_int_equal(record_decode(&rec, span_of(bytes, sizeof bytes)), ERR_OK);
    assert_int_equal(rec.recipients.size, 4);
    assert_false(record_find_parties(&field, span_of(bytes, sizeof bytes), &rec));
}

static void test_head_and_payload_make_the_record(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        struct record rec = draw_record();
        size_t size = record_size(&rec), head_size = record_head_size(&rec);
        assert_true(record_size_bound(&rec) >= size);
        uint8_t *whole = (uint8_t *)malloc(size), *head = (uint8_t *)malloc(head_size);
        record_encode(whole, &rec);
        assert_int_equal(record_encode_head(head, &rec), head_size);
        assert_int_equal(head_size + rec.payload.size, size);
        assert_memory_equal(whole, head, head_size);
        if (rec.payload.size)
            assert_memory_equal(whole + head_size, rec.payload.data, rec.payload.size);
        free(whole);
        free(head);
    }
}

static void test_every_cut_is_refused(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        struct record rec = draw_record(), back;
        size_t size = record_size(&rec);
        uint8_t *memory = (uint8_t *)malloc(size);
        record_encode(memory, &rec);
        for (size_t cut = 0; cut < size; cut++) {
            uint8_t *part = (uint8_t *)malloc(cut ? cut : 1);
            memcpy(part, memory, cut);
            assert_int_equal(record_decode(&back, span_of(part, cut)), ERR_CORRUPT);
            free(part);
        }
        free(memory);
    }
}

static void test_noise_never_reads_outside(void **state)
{
    (void)state;
    for (int i = 0; i < 50000; i++) {
        struct record rec = draw_record(), back;
        size_t size = record_size(&rec);
        uint8_t *memory = (uint8_t *)malloc(size);
        record_encode(memory, &rec);
        for (int flips = 0; flips < 3; flips++)
            memory[4 + draw() % (size - 4)] = (uint8_t)draw();
        enum err err = record_decode(&back, span_of(memory, size));
        assert_true(err == ERR_OK || err == ERR_CORRUPT || err == ERR_VERSION);
        free(memory);
    }
}

static enum err decode_with_field(uint8_t type, const uint8_t *field, size_t field_size, struct record *back)
{
    uint8_t memory[100];
    memory[4] = type;
    if (field_size)
        memcpy(memory + 5, field, field_size);
    store_le32(memory, (uint32_t)(5 + field_size));
    return record_decode(back, span_of(memory, 5 + field_size));
}

static void test_unknown_fields(void **state)
{
    (void)state;
    struct record back;
    const uint8_t number[] = {0x3e, 0x81, 0x01, 7, 9};      /* field 62, then the session */
    const uint8_t bytes[] = {0x7e, 3, 'a', 'b', 'c', 7, 9}; /* the same with bytes */
    const uint8_t number_must[] = {0x80 | 0x3e, 5};
    const uint8_t bytes_must[] = {0x80 | 0x7e, 1, 'x'};
    const uint8_t known_must[] = {0x80 | 7, 9};
    const uint8_t zero[] = {0x00, 1};
    const uint8_t too_long[] = {0x7e, 4, 'a'};
    const uint8_t packet_id[] = {4, 0x80, 0x80, 0x04}; /* 65536 */
    const uint8_t qos3[] = {1, 3};
    assert_int_equal(decode_with_field(1, number, sizeof number, &back), ERR_OK);
    assert_int_equal(back.session, 9);
    assert_int_equal(decode_with_field(1, bytes, sizeof bytes, &back), ERR_OK);
    assert_int_equal(back.session, 9);
    assert_int_equal(decode_with_field(1, number_must, sizeof number_must, &back), ERR_VERSION);
    assert_int_equal(decode_with_field(1, bytes_must, sizeof bytes_must, &back), ERR_VERSION);
    assert_int_equal(decode_with_field(1, known_must, sizeof known_must, &back), ERR_OK);
    assert_int_equal(back.session, 9);
    assert_int_equal(decode_with_field(1, zero, sizeof zero, &back), ERR_CORRUPT);
    assert_int_equal(decode_with_field(1, too_long, sizeof too_long, &back), ERR_CORRUPT);
    assert_int_equal(decode_with_field(1, packet_id, sizeof packet_id, &back), ERR_CORRUPT);
    assert_int_equal(decode_with_field(1, qos3, sizeof qos3, &back), ERR_CORRUPT);
    assert_int_equal(decode_with_field(100, NULL, 0, &back), ERR_OK);
    assert_int_equal(back.type, 100);
    assert_int_equal(decode_with_field(128, NULL, 0, &back), ERR_VERSION);
    assert_int_equal(back.type, 128);
    assert_int_equal(decode_with_field(0, NULL, 0, &back), ERR_CORRUPT);
}

static void test_recipients(void **state)
{
    (void)state;
    uint8_t memory[4096], ids[3 * VARINT_SIZE_MAX];
    size_t ids_size = varint_put(ids, 1);
    ids_size += varint_put(ids + ids_size, 300);
    ids_size += varint_put(ids + ids_size, 268435455);
    struct record_recipient in[3] = {{.session = 1, .qos = 0, .options = 0x80},
                                     {.session = UINT64_MAX, .qos = 2, .options = 12, .ids = span_of(ids, ids_size)},
                                     {.session = 77, .qos = 1}};
    size_t size = 0;
    for (int i = 0; i < 3; i++)
        size += record_recipient_put(memory + size, &in[i]);
    struct span rest = span_of(memory, size);
    for (int i = 0; i < 3; i++) {
        struct record_recipient out;
        assert_int_equal(record_recipient_next(&out, &rest), ERR_OK);
        assert_true(out.session == in[i].session);
        assert_int_equal(out.qos, in[i].qos);
        assert_int_equal(out.options, in[i].options);
        assert_span(out.ids, in[i].ids);
        uint32_t id, expected[] = {1, 300, 268435455};
        for (int k = 0; i == 1 && k < 3; k++) {
            assert_int_equal(record_id_next(&id, &out.ids), ERR_OK);
            assert_int_equal(id, expected[k]);
        }
        assert_int_equal(record_id_next(&id, &out.ids), ERR_AGAIN);
    }
    struct record_recipient out;
    assert_int_equal(record_recipient_next(&out, &rest), ERR_AGAIN);
    for (size_t cut = 1; cut < 4; cut++) {
        rest = span_of(memory, cut);
        assert_int_equal(record_recipient_next(&out, &rest), ERR_CORRUPT);
    }
}

static void test_records_in_a_row(void **state)
{
    (void)state;
    uint8_t memory[64];
    struct record a = {.type = RECORD_PUBLISH, .session = 5}, b = {.type = RECORD_PARTITIONS, .partition_count = 8};
    size_t size = record_encode(memory, &a);
    size += record_encode(memory + size, &b);
    struct span rest = span_of(memory, size), one;
    struct record back;
    assert_int_equal(record_next(&one, &rest), ERR_OK);
    assert_int_equal(record_decode(&back, one), ERR_OK);
    assert_record(&a, &back);
    assert_int_equal(record_next(&one, &rest), ERR_OK);
    assert_int_equal(record_decode(&back, one), ERR_OK);
    assert_record(&b, &back);
    assert_int_equal(record_next(&one, &rest), ERR_AGAIN);
    rest = span_of(memory, size - 1);
    assert_int_equal(record_next(&one, &rest), ERR_OK);
    assert_int_equal(record_next(&one, &rest), ERR_CORRUPT);
    assert_string_equal(record_type_name(RECORD_PUBLISH), "publish");
    assert_string_equal(record_type_name(200), "unknown");
}

/* It is a whole record after each step, and what it names is what was put. */
static void test_an_ack_grows(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        uint8_t memory[RECORD_ACK_SIZE_MAX + 0x80];
        uint64_t named[0x80], last, session = draw_number(UINT64_MAX - 1) + 1;
        uint64_t bound = draw() & 1 ? UINT64_MAX : 100000;
        size_t count = 0, size = record_ack_begin(memory, &last, session, named[0] = draw_number(bound));
        assert_true(size <= RECORD_ACK_SIZE_MAX);
        for (size_t used = 1; used > 0; size += used) {
            struct record back;
            struct span one, rest = span_of(memory, size);
            uint64_t sequence = 0;
            count++;
            assert_int_equal(last, named[count - 1]);
            assert_int_equal(record_next(&one, &rest), ERR_OK);
            assert_int_equal(one.size, size);
            assert_int_equal(record_decode(&back, one), ERR_OK);
            assert_int_equal(back.type, RECORD_ACK);
            assert_true(back.session == session);
            assert_true(record_is_state(&back));
            assert_int_equal(record_size(&back), size);
            size_t at = 0, offset = 0;
            for (; position_list_next(back.positions, &offset, &sequence) == ERR_OK; at++)
                assert_true(sequence == named[at]);
            assert_int_equal(at, count);
            assert_int_equal(offset, back.positions.size);
            if (count == sizeof named / sizeof *named)
                break;
            used = record_ack_grow(memory, &last, named[count] = draw_number(bound));
            assert_true(used <= VARINT_SIZE_MAX);
        }
        assert_true(count >= 12);
        assert_true(bound == UINT64_MAX || count >= 39);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_then_decode_is_identity),
        cmocka_unit_test(test_a_record_without_its_parties_is_cut_out),
        cmocka_unit_test(test_parties_of_another_encoder_are_not_found),
        cmocka_unit_test(test_head_and_payload_make_the_record),
        cmocka_unit_test(test_every_cut_is_refused),
        cmocka_unit_test(test_noise_never_reads_outside),
        cmocka_unit_test(test_unknown_fields),
        cmocka_unit_test(test_recipients),
        cmocka_unit_test(test_records_in_a_row),
        cmocka_unit_test(test_an_ack_grows),
    };
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)draw();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
