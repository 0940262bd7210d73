#include "common/utf8.h"

/* Lead bytes decide the length and the bounds of the second byte; all further bytes are 80..BF (table 3-7 of the Unicode standard). The
 * bounds of the second byte are what excludes overlong forms (E0, F0), surrogates (ED) and what lies past U+10FFFF (F4). */
size_t utf8_decode(uint32_t *code_point_out, const uint8_t *at, size_t size)
{
    uint8_t lead = at[0];
    if (lead < 0x80) {
        *code_point_out = lead;
        return 1;
    }
    uint8_t low = 0x80;
    uint8_t high = 0xbf;
    size_t length;
    uint32_t code_point;
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
        code_point = lead & 0x1fu;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        code_point = lead & 0x0fu;
        if (lead == 0xe0)
            low = 0xa0;
        else if (lead == 0xed)
            high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        code_point = lead & 0x07u;
        if (lead == 0xf0)
            low = 0x90;
        else if (lead == 0xf4)
            high = 0x8f;
    } else {
        return 0;
    }
    if (size < length)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if (at[i] < low || at[i] > high)
            return 0;
        code_point = code_point << 6 | (at[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    *code_point_out = code_point;
    return length;
}

#define EACH_BYTE(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Whether all 8 bytes are 01..7F. With every top bit clear, byte - 1 borrows only from a zero byte, and the lowest zero byte always shows.
 */
static inline bool is_plain_ascii_word(uint64_t word) { return ((word | (word - EACH_BYTE(0x01))) & EACH_BYTE(0x80)) == 0; }

bool utf8_is_valid(struct span text)
{
    const uint8_t *at = text.data;
    size_t left = text.size;
    while (left > 0) {
        while (left >= 8 && is_plain_ascii_word(load_le64(at))) {
            at += 8;
            left -= 8;
        }
        if (left == 0)
            break;
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, at, left);
        if (used == 0 || code_point == 0)
            return false;
        at += used;
        left -= used;
    }
    return true;
}

bool utf8_has_control(struct span text)
{
    size_t offset = 0;
    while (offset < text.size) {
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, text.data + offset, text.size - offset);
        if (used == 0 || code_point < 0x20 || (code_point >= 0x7f && code_point <= 0x9f))
            return true;
        if ((code_point >= 0xfdd0 && code_point <= 0xfdef) || (code_point & 0xfffe) == 0xfffe)
            return true;
        offset += used;
    }
    return false;
}
