/* log_block.c and log_segment.c: any bytes are a valid block or refused, without a read outside; a valid block gives out as many records as
 * its header says, inside its body, or is called corrupt. Tried as they are and with the checksums made right, or no mutation would pass
 * them. */
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log_block.h"
#include "common/log_segment.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_block(const uint8_t *data, size_t size)
{
    static uint8_t scratch[LOG_BLOCK_BODY_MAX];
    struct log_block_view view;
    if (log_block_view_parse(&view, data, size) != ERR_OK)
        return;
    CHECK(view.header.size <= size);
    uint8_t again[LOG_BLOCK_HEADER_SIZE];
    log_block_header_encode(again, &view.header);
    struct log_block_header header;
    CHECK(log_block_header_decode(&header, again, sizeof again) == ERR_OK);
    if (log_block_view_unpack(&view, scratch) != ERR_OK)
        return;
    CHECK(view.body.size == view.header.raw_size);
    if (view.header.flags & LOG_BLOCK_GROUP)
        return;
    struct span record;
    uint64_t sequence, count = 0;
    enum err err;
    while ((err = log_block_view_next(&view, &record, &sequence)) == ERR_OK) {
        struct record rec;
        CHECK(record.data >= view.body.data);
        CHECK(record.data + record.size <= view.body.data + view.body.size);
        CHECK(sequence == view.header.sequence + count);
        count++;
        (void)!record_decode(&rec, record);
    }
    CHECK(err == ERR_CORRUPT || count == view.header.record_count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct log_segment_header segment;
    (void)!log_segment_header_decode(&segment, data, size);
    try_block(data, size);
    if (size < LOG_BLOCK_HEADER_SIZE)
        return 0;
    uint8_t *fixed = (uint8_t *)malloc(size);
    CHECK(fixed);
    memcpy(fixed, data, size);
    uint32_t stored = load_le32(fixed + 72);
    if (stored <= size - LOG_BLOCK_HEADER_SIZE)
        store_le32(fixed + 80, crc32c(0, fixed + LOG_BLOCK_HEADER_SIZE, stored));
    store_le32(fixed + 4, crc32c(0, fixed + 8, LOG_BLOCK_HEADER_SIZE - 8));
    try_block(fixed, size);
    if (size >= LOG_SEGMENT_HEADER_SIZE) {
        store_le32(fixed + 4, crc32c(0, fixed + 8, LOG_SEGMENT_HEADER_SIZE - 8));
        (void)!log_segment_header_decode(&segment, fixed, size);
    }
    free(fixed);
    return 0;
}
