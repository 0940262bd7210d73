/* `tidegate-sink verify`: reads every manifest and every byte of every segment below a data directory and compares them with their
 * checksums.
 *
 * Only reads, takes no lock: a sink may run meanwhile (a segment that vanishes between manifest and look is looked for in a fresh
 * manifest). Blocks. */
#ifndef TIDEGATE_SINK_STORE_VERIFY_H
#define TIDEGATE_SINK_STORE_VERIFY_H

#include <stdio.h>

#include "common/file.h"

struct verify_report {
    uint64_t partitions;
    uint64_t segments;
    uint64_t chunks;
    uint64_t rows;
    uint64_t points;
    uint64_t bytes;
    uint64_t problems;
};

/* Look at everything below `data_directory`; each problem is a line on `out`. Returns 0 when all holds, ERR_CORRUPT when not, ERR_NOTFOUND
 * when there is no such directory. */
must_check enum err verify_data_directory(struct verify_report *report_out, struct fs *fs, const char *data_directory, FILE *out);

#endif
