/* An adaptive binary range coder: each decision costs what its probability says, down to a few hundredths of a bit.
 *
 * 32-bit range with carry propagation into the bytes already written; probabilities of 16 bits that learn fast at first and
 * slowly later (rate 1/(n + 1.5) up to 1/RANGE_RATE_LAST), because a chunk is short. Encoder and decoder must see the same models.
 * The encoder sets `overflow` when its buffer is full; the decoder reads zeros past its end and never beyond it. Pure. Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_RANGE_CODER_H
#define TIDEGATE_SINK_CODEC_RANGE_CODER_H

#include "common/bytes.h"

/* Probability (of 65536) that the bit is 0, and how many bits it has seen. */
struct range_bit {
    uint16_t zero;
    uint16_t seen;
};

#define RANGE_SEEN_MAX 40

extern const uint16_t range_rate[RANGE_SEEN_MAX + 1]; /* 65536 / (seen + 1.5) */

static inline void range_bit_init(struct range_bit *bit) { *bit = (struct range_bit){32768, 0}; }

static inline void range_bit_learn(struct range_bit *model, unsigned bit)
{
    uint32_t rate = range_rate[model->seen];
    uint32_t zero = model->zero;
    if (bit)
        zero -= (zero * rate) >> 16;
    else
        zero += ((65535 - zero) * rate) >> 16;
    model->zero = (uint16_t)(zero < 64 ? 64 : zero > 65472 ? 65472 : zero);
    if (model->seen < RANGE_SEEN_MAX)
        model->seen++;
}

struct range_encoder {
    uint8_t *begin, *at, *end;
    uint64_t low;
    uint32_t range;
    bool overflow;
};

void range_encoder_init(struct range_encoder *enc, uint8_t *buffer, size_t size);
/* Returns the size in bytes, 0 after an overflow. Trailing zero bytes are left out: the decoder reads zeros past the end. */
size_t range_encoder_finish(struct range_encoder *enc);
void range_encoder_carry(struct range_encoder *enc);

static inline void range_encoder_shift(struct range_encoder *enc)
{
    while (enc->range < (1u << 24)) {
        if (enc->low >> 32) {
            range_encoder_carry(enc);
            enc->low &= 0xffffffff;
        }
        if (enc->at < enc->end)
            *enc->at++ = (uint8_t)(enc->low >> 24);
        else
            enc->overflow = true;
        enc->low = (enc->low & 0xffffff) << 8;
        enc->range <<= 8;
    }
}

static inline void range_encode_bit(struct range_encoder *enc, struct range_bit *model, unsigned bit)
{
    uint32_t bound = (enc->range >> 16) * model->zero;
    if (bit) {
        enc->low += bound;
        enc->range -= bound;
    } else {
        enc->range = bound;
    }
    range_bit_learn(model, bit);
    range_encoder_shift(enc);
}

/* `bits` (0..64) bits with no model. */
static inline void range_encode_direct(struct range_encoder *enc, uint64_t value, unsigned bits)
{
    while (bits) {
        unsigned part = bits > 8 ? 8 : bits;
        bits -= part;
        enc->range >>= part;
        enc->low += (uint64_t)enc->range * (value >> bits & ((1u << part) - 1));
        range_encoder_shift(enc);
    }
}

/* A symbol of `bits` bits, most significant first, each bit with the model that the bits before it select: models[1 << bits]. */
static inline void range_encode_tree(struct range_encoder *enc, struct range_bit *models, unsigned symbol, unsigned bits)
{
    unsigned node = 1;
    while (bits--) {
        unsigned bit = symbol >> bits & 1;
        range_encode_bit(enc, &models[node], bit);
        node = node << 1 | bit;
    }
}

struct range_decoder {
    const uint8_t *at, *end;
    uint32_t range, code;
    unsigned beyond; /* zeros read past the end */
};

void range_decoder_init(struct range_decoder *dec, struct span bytes);
/* Whether all bytes were read, and not more beyond than an encoder leaves out. */
bool range_decoder_is_done(const struct range_decoder *dec);

static inline void range_decoder_shift(struct range_decoder *dec)
{
    while (dec->range < (1u << 24)) {
        uint8_t byte = 0;
        if (dec->at < dec->end)
            byte = *dec->at++;
        else
            dec->beyond++;
        dec->code = dec->code << 8 | byte;
        dec->range <<= 8;
    }
}

static inline unsigned range_decode_bit(struct range_decoder *dec, struct range_bit *model)
{
    uint32_t bound = (dec->range >> 16) * model->zero;
    unsigned bit = dec->code >= bound;
    if (bit) {
        dec->code -= bound;
        dec->range -= bound;
    } else {
        dec->range = bound;
    }
    range_bit_learn(model, bit);
    range_decoder_shift(dec);
    return bit;
}

static inline uint64_t range_decode_direct(struct range_decoder *dec, unsigned bits)
{
    uint64_t value = 0;
    while (bits) {
        unsigned part = bits > 8 ? 8 : bits;
        bits -= part;
        dec->range >>= part;
        uint32_t digit = dec->code / dec->range;
        if (digit >= 1u << part)
            digit = (1u << part) - 1; /* only corrupt bytes lead here */
        dec->code -= digit * dec->range;
        value = value << part | digit;
        range_decoder_shift(dec);
    }
    return value;
}

static inline unsigned range_decode_tree(struct range_decoder *dec, struct range_bit *models, unsigned bits)
{
    unsigned node = 1;
    for (unsigned i = 0; i < bits; i++)
        node = node << 1 | range_decode_bit(dec, &models[node]);
    return node - (1u << bits);
}

#endif
