/* A manifest of arbitrary bytes, its size and checksum set right first: what decodes encodes to the same bytes again. */
#include <stdlib.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "sink/store/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest manifest, again;
    struct buf out;
    uint8_t *bytes = malloc(size + 1);
    CHECK(bytes);
    memcpy(bytes, data, size);
    if (size >= 20) {
        store_le64(bytes + 8, size);
        store_le32(bytes + size - 4, crc32c(0, bytes, size - 4));
    }
    if (manifest_decode(&manifest, span_of(bytes, size)) == ERR_OK) {
        buf_init(&out, MANIFEST_SIZE_MAX);
        manifest_encode(&out, &manifest);
        CHECK(out.err == ERR_OK);
        CHECK(manifest_decode(&again, buf_span(&out)) == ERR_OK);
        CHECK(again.segment_count == manifest.segment_count);
        CHECK(again.mark_count == manifest.mark_count);
        CHECK(again.position.position.sequence == manifest.position.position.sequence);
        manifest_deinit(&again);
        manifest_deinit(&manifest);
        buf_deinit(&out);
    }
    free(bytes);
    return 0;
}
