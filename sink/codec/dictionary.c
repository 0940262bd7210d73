/* Layout: varint number of values, 1..256; one byte: 0 for raw values, 1 for decimals; raw: 8 bytes each; decimals: varint size and that
 * many bytes; then the integers: places in the table. */
#include "sink/codec/dictionary.h"

#define SLOT_COUNT 1024

/* Bits of a double, such that unsigned order is numeric order (-NaN, negatives, -0.0, 0.0, positives, NaN). */
static inline uint64_t key_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

static inline double value_of(uint64_t key)
{
    uint64_t bits = key >> 63 ? key & ~((uint64_t)1 << 63) : ~key;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void sort_order(struct dictionary *dict)
{
    /* Insertion sort of at most 256 places, nearly free for the usual dozen. */
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        while (at > 0 && dict->keys[dict->order[at - 1]] > dict->keys[i]) {
            dict->order[at] = dict->order[at - 1];
            at--;
        }
        dict->order[at] = (uint16_t)i;
    }
}

bool dictionary_build(struct dictionary *dict, size_t value_count_max, const double *values, size_t count)
{
    dict->count = 0;
    memset(dict->slots, 0xff, sizeof dict->slots);
    for (size_t i = 0; i < count; i++) {
        uint64_t key = key_of(values[i]);
        size_t slot = (size_t)((key * 0x9e3779b97f4a7c15u) >> 54);
        while (dict->slots[slot] >= 0 && dict->keys[dict->slots[slot]] != key)
            slot = (slot + 1) % SLOT_COUNT;
        if (dict->slots[slot] < 0) {
            if (dict->count == value_count_max)
                return false;
            dict->slots[slot] = (int16_t)dict->count;
            dict->keys[dict->count++] = key;
        }
        dict->index[i] = (uint16_t)dict->slots[slot];
    }
    sort_order(dict);
    return true;
}

size_t dictionary_encode(struct dictionary *dict, struct decimal_scratch *scratch, uint8_t *out, size_t size, size_t count, bool dense)
{
    double table[DICTIONARY_VALUES_MAX];
    uint16_t place[DICTIONARY_VALUES_MAX];
    if (size < 16 + dict->count * 8)
        return 0;
    for (size_t i = 0; i < dict->count; i++) {
        table[i] = value_of(dict->keys[dict->order[i]]);
        place[dict->order[i]] = (uint16_t)i;
    }
    size_t at = varint_put(out, dict->count);
    size_t table_size = decimal_encode(scratch, out + at + 3, dict->count * 8, NULL, table, dict->count, dense);
    if (table_size && table_size + 2 < dict->count * 8) {
        out[at] = 1;
        out[at + 1] = (uint8_t)(0x80 | (table_size & 0x7f));
        out[at + 2] = (uint8_t)(table_size >> 7);
        at += 3 + table_size;
    } else {
        out[at++] = 0;
        for (size_t i = 0; i < dict->count; i++) {
            uint64_t bits;
            memcpy(&bits, &table[i], sizeof bits);
            store_le64(out + at + i * 8, bits);
        }
        at += dict->count * 8;
    }
    for (size_t i = 0; i < count; i++)
        scratch->integers[i] = place[dict->index[i]];
    size_t used = integers_encode(&scratch->coder, out + at, size - at, scratch->integers, count, dense);
    return used ? at + used : 0;
}

enum err dictionary_decode(double *values_out, int64_t *integers, size_t count, struct span bytes)
{
    const uint8_t *at = bytes.data, *end = bytes.data + bytes.size;
    double table[DICTIONARY_VALUES_MAX];
    uint64_t value_count, table_size;
    size_t used = varint_get(&value_count, at, end);
    if (used == 0 || value_count == 0 || value_count > DICTIONARY_VALUES_MAX || at + used == end)
        return ERR_CORRUPT;
    at += used;
    unsigned kind = *at++;
    if (kind > 1)
        return ERR_VERSION;
    if (kind == 0) {
        if ((size_t)(end - at) < value_count * 8)
            return ERR_CORRUPT;
        for (size_t i = 0; i < value_count; i++) {
            uint64_t bits = load_le64(at + i * 8);
            memcpy(&table[i], &bits, sizeof bits);
        }
        at += value_count * 8;
    } else {
        int64_t work[DICTIONARY_VALUES_MAX];
        used = varint_get(&table_size, at, end);
        if (used == 0 || table_size > (size_t)(end - at) - used)
            return ERR_CORRUPT;
        at += used;
        enum err err = decimal_decode(table, work, (size_t)value_count, span_of(at, (size_t)table_size));
        if (err)
            return err;
        at += table_size;
    }
    enum err err = integers_decode(integers, count, span_of(at, (size_t)(end - at)));
    if (err)
        return err;
    for (size_t i = 0; i < count; i++) {
        if ((uint64_t)integers[i] >= value_count)
            return ERR_CORRUPT;
        values_out[i] = table[integers[i]];
    }
    return ERR_OK;
}
