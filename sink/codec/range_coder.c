#include "sink/codec/range_coder.h"

#define RATE(n) ((uint16_t)(65536.0 / ((n) + 1.5)))
#define RATE8(n) RATE(n), RATE(n + 1), RATE(n + 2), RATE(n + 3), RATE(n + 4), RATE(n + 5), RATE(n + 6), RATE(n + 7)
const uint16_t range_rate[RANGE_SEEN_MAX + 1] = {RATE8(0), RATE8(8), RATE8(16), RATE8(24), RATE8(32), RATE(40)};

void range_encoder_init(struct range_encoder *enc, uint8_t *buffer, size_t size)
{
    *enc = (struct range_encoder){.begin = buffer, .at = buffer, .end = buffer + size, .range = UINT32_MAX};
}

/* Add one to the number that the bytes written so far are. It cannot run out at the front: the code is a fraction below 1. */
void range_encoder_carry(struct range_encoder *enc)
{
    for (uint8_t *at = enc->at; at > enc->begin;)
        if (++*--at)
            return;
}

size_t range_encoder_finish(struct range_encoder *enc)
{
    /* The shortest number in [low, low + range): round up to a multiple of the largest power of two that fits. */
    uint64_t low = enc->low, high = low + enc->range;
    for (unsigned bits = 32; bits-- > 0;) {
        uint64_t unit = (uint64_t)1 << bits;
        uint64_t rounded = (low + unit - 1) & ~(unit - 1);
        if (rounded < high) {
            low = rounded;
            break;
        }
    }
    if (low >> 32) {
        range_encoder_carry(enc);
        low &= 0xffffffff;
    }
    for (int i = 0; i < 4; i++) {
        if (enc->at < enc->end)
            *enc->at++ = (uint8_t)(low >> 24);
        else if (low >> 24 & 0xff)
            enc->overflow = true;
        low <<= 8;
    }
    if (enc->overflow)
        return 0;
    while (enc->at > enc->begin + 1 && enc->at[-1] == 0)
        enc->at--;
    return (size_t)(enc->at - enc->begin);
}

void range_decoder_init(struct range_decoder *dec, struct span bytes)
{
    *dec = (struct range_decoder){.at = bytes.data, .end = bytes.data + bytes.size, .range = UINT32_MAX};
    for (int i = 0; i < 4; i++) {
        uint8_t byte = 0;
        if (dec->at < dec->end)
            byte = *dec->at++;
        else
            dec->beyond++;
        dec->code = dec->code << 8 | byte;
    }
}

bool range_decoder_is_done(const struct range_decoder *dec) { return dec->at == dec->end; }
