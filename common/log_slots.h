/* A small file of two slots: a value that is replaced often and must never be half written.
 *
 * Each slot is one sector (512 B, at offsets 0 and 4096) with magic, a number that counts the writes, the payload and a CRC-32C. A write
 * goes to the slot that does not hold the newest value; a read takes the valid slot with the greater number. So a torn or forgotten write
 * leaves the value before it. The log's identity, state and cursors are such files.
 *
 * Owner: one writer; any number of readers in other processes. Thread: the owner. */
#ifndef TIDEGATE_COMMON_LOG_SLOTS_H
#define TIDEGATE_COMMON_LOG_SLOTS_H

#include "common/file.h"

#define LOG_SLOT_VERSION 1
#define LOG_SLOT_SIZE 512
#define LOG_SLOT_STRIDE 4096
#define LOG_SLOT_PAYLOAD_MAX (LOG_SLOT_SIZE - 32)

struct log_slots {
    struct file *file;
    uint32_t magic;  /* says which kind of file it is */
    uint64_t number; /* of the newest value; 0: none yet */
};

/* Open `path`. flags: of enum file_flag. Nothing is read yet. */
must_check enum err log_slots_open(struct log_slots *slots, struct fs *fs, const char *path, uint32_t magic, unsigned flags);
void log_slots_close(struct log_slots *slots);

/* Read the newest value into `payload` (of `size` bytes; a shorter stored one is followed by zeros, a longer one is cut).
 * Returns 0, ERR_NOTFOUND (the file is empty or all zero: nothing was ever written), ERR_CORRUPT (bytes, but no valid slot), ERR_VERSION,
 * ERR_IO. */
must_check enum err log_slots_read(struct log_slots *slots, void *payload, size_t size);

/* The same for the older of two valid slots, or the only one. Where a writer syncs each value before it begins the next, this value is
 * durable, which the newest need not be. */
must_check enum err log_slots_read_older(struct log_slots *slots, void *payload, size_t size);

/* Write the next value; not synced. `size` up to LOG_SLOT_PAYLOAD_MAX. log_slots_read must have been called once. */
must_check enum err log_slots_write(struct log_slots *slots, const void *payload, size_t size);

#endif
