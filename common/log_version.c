#include "common/log_version.h"

#include <inttypes.h>
#include <stdlib.h>

#include "common/bytes.h"

#define VERSION_AT 8

static uint16_t version_at(struct file *file, uint64_t offset)
{
    uint8_t header[VERSION_AT + 2] = {0};
    size_t got = 0;
    return file_pread(file, &got, header, sizeof header, offset) == ERR_OK && got == sizeof header ? load_le16(header + VERSION_AT) : 0;
}

enum err log_version_refuse(struct fs *fs, const char *path, uint64_t offset, uint16_t known, struct errmsg *msg)
{
    struct file *file = NULL;
    uint64_t at = 0;
    uint16_t version = 0;
    if (fs_open(fs, &file, path, FILE_READ) == ERR_OK) {
        version = version_at(file, at);
        if (version == known)
            version = version_at(file, at = offset);
        file_close(file);
    }
    return err_set(msg, ERR_VERSION, "%s: offset %" PRIu64 ": version %u, and this program knows %u: use the program that wrote it", path,
                   at, version, known);
}
