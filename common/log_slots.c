#include "common/log_slots.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"

/* A slot: u32 magic, u32 crc (of everything behind it), u16 version, u16 payload size, u32 zero, u64 number, payload, zeros. */
#define LOG_SLOT_HEAD 24

_Static_assert(LOG_SLOT_HEAD + LOG_SLOT_PAYLOAD_MAX <= LOG_SLOT_SIZE, "a slot is one sector");

enum err log_slots_open(struct log_slots *slots, struct fs *fs, const char *path, uint32_t magic, unsigned flags)
{
    memset(slots, 0, sizeof *slots);
    slots->magic = magic;
    return fs_open(fs, &slots->file, path, flags);
}

void log_slots_close(struct log_slots *slots)
{
    file_close(slots->file);
    slots->file = NULL;
}

static bool log_slot_is_zero(const uint8_t *slot)
{
    for (size_t i = 0; i < LOG_SLOT_SIZE; i++) {
        if (slot[i])
            return false;
    }
    return true;
}

static enum err log_slot_decode(uint64_t *number_out, struct span *payload_out, const uint8_t *slot, uint32_t magic)
{
    if (load_le32(slot) != magic || load_le32(slot + 4) != crc32c(0, slot + 8, LOG_SLOT_SIZE - 8))
        return log_slot_is_zero(slot) ? ERR_NOTFOUND : ERR_CORRUPT;
    if (load_le16(slot + 8) != LOG_SLOT_VERSION)
        return ERR_VERSION;
    size_t size = load_le16(slot + 10);
    if (size > LOG_SLOT_PAYLOAD_MAX)
        return ERR_CORRUPT;
    *number_out = load_le64(slot + 16);
    *payload_out = span_of(slot + LOG_SLOT_HEAD, size);
    return *number_out ? ERR_OK : ERR_CORRUPT;
}

static enum err log_slots_pick(struct log_slots *slots, void *payload, size_t size, bool older)
{
    uint8_t bytes[2][LOG_SLOT_SIZE] = {{0}};
    struct span best = {0};
    uint64_t best_number = 0;
    enum err worst = ERR_NOTFOUND;
    for (int i = 0; i < 2; i++) {
        size_t got = 0;
        enum err err = file_pread(slots->file, &got, bytes[i], LOG_SLOT_SIZE, (uint64_t)i * LOG_SLOT_STRIDE);
        if (err)
            return err;
        uint64_t number;
        struct span value;
        err = log_slot_decode(&number, &value, bytes[i], slots->magic);
        if (!err && (best_number == 0 || (number > best_number) != older)) {
            best_number = number;
            best = value;
        } else if (err == ERR_VERSION || (err == ERR_CORRUPT && worst == ERR_NOTFOUND)) {
            worst = err;
        }
    }
    /* A slot of a newer version hides a newer value: not for us to fall back behind it. */
    if (worst == ERR_VERSION || !best_number)
        return worst;
    if (!older)
        slots->number = best_number;
    memset(payload, 0, size);
    memcpy(payload, best.data, best.size < size ? best.size : size);
    return ERR_OK;
}

enum err log_slots_read(struct log_slots *slots, void *payload, size_t size) { return log_slots_pick(slots, payload, size, false); }

enum err log_slots_read_older(struct log_slots *slots, void *payload, size_t size) { return log_slots_pick(slots, payload, size, true); }

enum err log_slots_write(struct log_slots *slots, const void *payload, size_t size)
{
    uint8_t slot[LOG_SLOT_SIZE] = {0};
    CHECK(size <= LOG_SLOT_PAYLOAD_MAX);
    uint64_t number = slots->number + 1;
    store_le32(slot, slots->magic);
    store_le16(slot + 8, LOG_SLOT_VERSION);
    store_le16(slot + 10, (uint16_t)size);
    store_le64(slot + 16, number);
    memcpy(slot + LOG_SLOT_HEAD, payload, size);
    store_le32(slot + 4, crc32c(0, slot + 8, LOG_SLOT_SIZE - 8));
    enum err err = file_pwrite(slots->file, slot, LOG_SLOT_SIZE, (number & 1) * LOG_SLOT_STRIDE);
    if (!err)
        slots->number = number;
    return err;
}
