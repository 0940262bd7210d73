/* log_block.c: what a shard puts into blocks comes out of the view; nothing that is not whole does.
 *
 * TIDEGATE_CORPUS=DIR writes the seeds of fuzz/record_fuzz.c and fuzz/log_block_fuzz.c into DIR/record and DIR/log_block. */
#include "common/log_block.h"

#include "common/crc32c.h"
#include "common/log_segment.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct log_block_header header_of(const struct log_block *block)
{
    struct log_block_header header = {.flags = block->flags,
                                      .shard = block->shard,
                                      .epoch = 3,
                                      .broker_id = 0x1122334455667788,
                                      .generation = 7,
                                      .offset = 8192,
                                      .start = 99,
                                      .sequence = 1000,
                                      .shard_block = block->shard_block,
                                      .record_count = block->record_count,
                                      .stored_size = block->body_size,
                                      .raw_size = block->raw_size,
                                      .body_crc = block->body_crc,
                                      .size = block->size,
                                      .group_offset = block->group_offset,
                                      .group_size = block->group_size,
                                      .durable_before = {{3, 900}, {7, 4096}}};
    return header;
}

static void put_header(struct log_block *block)
{
    struct log_block_header header = header_of(block);
    log_block_header_encode(block->memory, &header);
}

static void save(const char *kind, const char *name, const void *data, size_t size)
{
    char path[512];
    const char *dir = getenv("TIDEGATE_CORPUS");
    if (!dir)
        return;
    snprintf(path, sizeof path, "%s/%s/%s", dir, kind, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

static struct record telemetry(uint64_t i, char *payload)
{
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 1,
                         .topic = SPAN_LITERAL("fleet/car42/telemetry"),
                         .client_id = SPAN_LITERAL("car42"),
                         .device = SPAN_LITERAL("car42"),
                         .rule = SPAN_LITERAL("fleet"),
                         .received_ns = 1760000000000000000 + (int64_t)i,
                         .session = i,
                         .partition = 3,
                         .partition_count = 16,
                         .codec = RECORD_CODEC_JSON,
                         .has_correlation = true};
    sprintf(payload, "{\"ts\":%llu,\"speed\":%llu.5,\"soc\":87}", (unsigned long long)(1760000000 + i), (unsigned long long)(i % 90));
    rec.payload = span_of_string(payload);
    return rec;
}

static void test_records_come_back(void **state)
{
    (void)state;
    struct log_block_pool pool;
    uint8_t scratch[LOG_BLOCK_BODY_MAX];
    const uint32_t counts[] = {1, 20, 400};
    assert_int_equal(log_block_pool_init(&pool, 5, 2, LOG_BLOCK_BODY_MAX, 512), ERR_OK);
    for (size_t k = 0; k < 3; k++) {
        struct log_block *block = log_block_pool_get(&pool);
        char payload[100];
        for (uint64_t i = 0; i < counts[k]; i++) {
            struct record rec = telemetry(i, payload);
            assert_int_equal(log_block_append(block, &rec), ERR_OK);
        }
        log_block_seal(&pool, block);
        put_header(block);
        assert_int_equal(block->shard_block, k + 1);
        assert_int_equal(block->size % 512, 0);
        assert_int_equal(!!(block->flags & LOG_BLOCK_LZ4), k == 2);
        assert_true(k < 2 || block->size < block->raw_size / 2);
        struct log_block_view view;
        assert_int_equal(log_block_view_parse(&view, block->memory, block->size), ERR_OK);
        assert_int_equal(log_block_view_parse(&view, block->memory, block->size - 1), ERR_AGAIN);
        assert_int_equal(log_block_view_parse(&view, block->memory, 127), ERR_AGAIN);
        assert_int_equal(log_block_view_parse(&view, block->memory, block->size), ERR_OK);
        assert_int_equal(view.header.durable_before.position.sequence, 900);
        assert_int_equal(log_block_view_unpack(&view, scratch), ERR_OK);
        for (uint64_t i = 0; i < counts[k]; i++) {
            struct span bytes;
            struct record rec, expected = telemetry(i, payload);
            uint64_t sequence;
            assert_int_equal(log_block_view_next(&view, &bytes, &sequence), ERR_OK);
            assert_int_equal(sequence, 1000 + i);
            assert_int_equal(record_decode(&rec, bytes), ERR_OK);
            assert_true(rec.session == i);
            assert_true(span_equal(rec.payload, expected.payload));
            if (k == 0)
                save("record", "publish", bytes.data, bytes.size);
        }
        struct span bytes;
        uint64_t sequence;
        assert_int_equal(log_block_view_next(&view, &bytes, &sequence), ERR_AGAIN);
        save("log_block", k == 0 ? "one" : k == 1 ? "twenty" : "lz4", block->memory, block->size);
        log_block_pool_put(&pool, block);
    }
    log_block_pool_deinit(&pool);
}

/* A sealed block of one record, from a new pool of one block. */
static struct log_block *lone_record(struct log_block_pool *pool)
{
    char payload[100];
    struct record rec = telemetry(1, payload);
    assert_int_equal(log_block_pool_init(pool, 0, 1, LOG_BLOCK_BODY_MAX, 512), ERR_OK);
    struct log_block *block = log_block_pool_get(pool);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(pool, block);
    return block;
}

static void test_lone_record_takes_one_sector(void **state)
{
    (void)state;
    struct log_block_pool pool;
    struct log_block *block = lone_record(&pool);
    assert_int_equal(block->size, 512);
    log_block_pool_put(&pool, block);
    log_block_pool_deinit(&pool);
}

static void test_one_record_of_state_marks_its_block(void **state)
{
    (void)state;
    struct log_block_pool pool;
    char payload[100];
    assert_int_equal(log_block_pool_init(&pool, 0, 1, LOG_BLOCK_BODY_MAX, 512), ERR_OK);
    for (uint64_t which = 0; which < 4; which++) { /* none, the first, one in the middle, the last */
        struct log_block *block = log_block_pool_get(&pool);
        for (uint64_t i = 0; i < 300; i++) {
            struct record rec = telemetry(i, payload);
            if (which > 0 && i == (which - 1) * 299 / 2)
                rec.retained_number = 1;
            assert_int_equal(log_block_append(block, &rec), ERR_OK);
        }
        log_block_seal(&pool, block);
        put_header(block);
        struct log_block_view view;
        assert_int_equal(log_block_view_parse(&view, block->memory, block->size), ERR_OK);
        assert_int_equal(!!(view.header.flags & LOG_BLOCK_STATE), which > 0);
        log_block_pool_put(&pool, block);
    }
    log_block_pool_deinit(&pool);
}

static void test_every_flipped_bit_is_found(void **state)
{
    (void)state;
    struct log_block_pool pool;
    struct log_block *block = lone_record(&pool);
    put_header(block);
    for (uint32_t bit = 0; bit < 8 * (LOG_BLOCK_HEADER_SIZE + block->body_size); bit++) {
        struct log_block_view view;
        block->memory[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(log_block_view_parse(&view, block->memory, block->size), ERR_CORRUPT);
        block->memory[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    log_block_pool_put(&pool, block);
    log_block_pool_deinit(&pool);
}

static void test_full_block_and_empty_pool(void **state)
{
    (void)state;
    struct log_block_pool pool;
    uint8_t big[2000] = {0};
    struct record rec = {.type = RECORD_PUBLISH, .payload = span_of(big, 600)};
    assert_int_equal(log_block_pool_init(&pool, 0, 2, 1024, 512), ERR_OK);
    struct log_block *a = log_block_pool_get(&pool), *b = log_block_pool_get(&pool);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(log_block_pool_get(&pool));
    assert_int_equal(log_block_append(a, &rec), ERR_OK);
    assert_int_equal(log_block_append(a, &rec), ERR_FULL);
    rec.payload.size = 1020;
    assert_int_equal(log_block_append(b, &rec), ERR_TOOLARGE);
    log_block_pool_put(&pool, b);
    assert_ptr_equal(log_block_pool_get(&pool), b);
    log_block_pool_put(&pool, a);
    log_block_pool_put(&pool, b);
    log_block_pool_deinit(&pool);
}

static void test_groups_of_every_size(void **state)
{
    (void)state;
    struct log_block_pool pool;
    assert_int_equal(log_block_pool_init(&pool, 0, 1, 1024, 512), ERR_OK);
    static uint8_t payload[5000], joined[6000], whole[6000], scratch[LOG_BLOCK_BODY_MAX];
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 7);
    for (size_t size = 1020; size < sizeof payload; size += 13) {
        struct record rec = {.type = RECORD_PUBLISH, .topic = SPAN_LITERAL("t"), .payload = span_of(payload, size)};
        size_t total = record_encode(whole, &rec), got = 0;
        struct log_block_group group;
        log_block_group_init(&group, span_of(whole, total - size), rec.payload, size % 2 == 1);
        for (int part = 0; !log_block_group_done(&group); part++) {
            struct log_block *block = log_block_pool_get(&pool);
            size_t copied = log_block_group_next(&group, block);
            log_block_seal(&pool, block);
            put_header(block);
            struct log_block_view view;
            assert_int_equal(log_block_view_parse(&view, block->memory, block->size), ERR_OK);
            assert_int_equal(log_block_view_unpack(&view, scratch), ERR_OK);
            assert_int_equal(!!(view.header.flags & LOG_BLOCK_STATE), size % 2 == 1); /* each of them */
            assert_int_equal(view.header.group_offset, got);
            assert_int_equal(view.header.group_size, total);
            assert_int_equal(view.body.size, copied);
            assert_int_equal(!!(view.header.flags & LOG_BLOCK_GROUP_FIRST), part == 0);
            assert_int_equal(!!(view.header.flags & LOG_BLOCK_GROUP_LAST), got + copied == total);
            assert_int_equal(view.header.record_count, got + copied == total);
            memcpy(joined + got, view.body.data, copied);
            got += copied;
            if (size == 1020 + 13)
                save("log_block", part ? "group_last" : "group_first", block->memory, block->size);
            log_block_pool_put(&pool, block);
        }
        assert_int_equal(got, total);
        assert_memory_equal(joined, whole, total);
    }
    log_block_pool_deinit(&pool);
}

static void refuse(struct log_block_header header)
{
    uint8_t bytes[LOG_BLOCK_HEADER_SIZE];
    log_block_header_encode(bytes, &header);
    assert_int_equal(log_block_header_decode(&header, bytes, sizeof bytes), ERR_CORRUPT);
}

static void test_impossible_headers_are_refused(void **state)
{
    (void)state;
    struct log_block_header good = {.epoch = 1,
                                    .broker_id = 1,
                                    .generation = 1,
                                    .offset = 4096,
                                    .sequence = 1,
                                    .shard_block = 1,
                                    .record_count = 1,
                                    .stored_size = 100,
                                    .raw_size = 100,
                                    .size = 512},
                            bad;
    uint8_t bytes[LOG_BLOCK_HEADER_SIZE];
    log_block_header_encode(bytes, &good);
    assert_int_equal(log_block_header_decode(&bad, bytes, sizeof bytes), ERR_OK);
#define REFUSE(field, value) (bad = good, bad.field = (value), refuse(bad))
    REFUSE(epoch, 0);
    REFUSE(generation, 0);
    REFUSE(sequence, 0);
    REFUSE(shard_block, 0);
    REFUSE(flags, 0x20);
    REFUSE(flags, LOG_BLOCK_GROUP_FIRST);
    REFUSE(flags, LOG_BLOCK_GROUP_FIRST | LOG_BLOCK_GROUP_LAST);
    REFUSE(shard, LOG_SHARD_MAX);
    REFUSE(stored_size, 0);
    REFUSE(stored_size, 101);
    REFUSE(raw_size, 101);
    REFUSE(raw_size, LOG_BLOCK_BODY_MAX + 1);
    REFUSE(size, 0);
    REFUSE(size, 513);
    REFUSE(size, 8192);
    REFUSE(record_count, 0);
    REFUSE(record_count, 21);
    REFUSE(group_size, 1);
    REFUSE(group_offset, 1);
    store_le16(bytes + 8, 2);
    store_le32(bytes + 4, crc32c(0, bytes + 8, LOG_BLOCK_HEADER_SIZE - 8));
    assert_int_equal(log_block_header_decode(&bad, bytes, sizeof bytes), ERR_VERSION);
}

static void test_segment_header(void **state)
{
    (void)state;
    uint8_t bytes[LOG_SEGMENT_HEADER_SIZE];
    char name[LOG_SEGMENT_NAME_SIZE];
    struct log_segment_header in, out;
    memset(&in, 0, sizeof in); /* its padding is compared, too */
    memset(&out, 0, sizeof out);
    in.broker_id = 5;
    in.generation = 0x1f;
    in.epoch = 2;
    in.alignment = 512;
    in.start = 77;
    in.first_sequence = 12;
    in.predecessor = (struct log_place){0x1e, 8192};
    in.size = 65536;
    in.created_ns = -5;
    log_segment_header_encode(bytes, &in);
    assert_int_equal(log_segment_header_decode(&out, bytes, sizeof bytes), ERR_OK);
    assert_memory_equal(&in, &out, sizeof in);
    save("log_block", "segment", bytes, sizeof bytes);
    for (size_t at = 0; at < sizeof bytes; at += 5) {
        bytes[at] ^= 4;
        assert_int_equal(log_segment_header_decode(&out, bytes, sizeof bytes), ERR_CORRUPT);
        bytes[at] ^= 4;
    }
    assert_int_equal(log_segment_header_decode(&out, bytes, sizeof bytes - 1), ERR_CORRUPT);
    log_segment_name(name, 0x1f);
    assert_string_equal(name, "000000000000001f.seg");
    assert_int_equal(log_segment_name_parse(name), 0x1f);
    assert_int_equal(log_segment_name_parse("000000000000001F.seg"), 0);
    assert_int_equal(log_segment_name_parse("1f.seg"), 0);
    assert_true(log_segment_name_is_spare("spare-0.seg"));
    assert_false(log_segment_name_is_spare(name));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_come_back),
        cmocka_unit_test(test_lone_record_takes_one_sector),
        cmocka_unit_test(test_one_record_of_state_marks_its_block),
        cmocka_unit_test(test_every_flipped_bit_is_found),
        cmocka_unit_test(test_full_block_and_empty_pool),
        cmocka_unit_test(test_groups_of_every_size),
        cmocka_unit_test(test_impossible_headers_are_refused),
        cmocka_unit_test(test_segment_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
