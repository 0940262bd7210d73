/* utf8_is_valid() against utf8_decode() step by step: the fast path must not change the verdict, and nothing reads past the end. */
#include <stdint.h>

#include "common/check.h"
#include "common/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool is_valid = true;
    for (size_t offset = 0; is_valid && offset < size;) {
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, data + offset, size - offset);
        CHECK(used <= 4);
        CHECK(used <= size - offset);
        is_valid = used > 0 && code_point != 0;
        CHECK(!is_valid || code_point <= 0x10ffff);
        CHECK(!is_valid || code_point < 0xd800 || code_point > 0xdfff);
        offset += used;
    }
    CHECK(utf8_is_valid(span_of(data, size)) == is_valid);
    (void)utf8_has_control(span_of(data, size));
    return 0;
}
