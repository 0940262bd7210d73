/* The disk's own latency for what the log does: O_DIRECT|O_DSYNC writes of a few hundred bytes to a few KiB, one at a time, into a file
 * that is already written. `disk_sync DIR [SECONDS]` prints p50 and p99 for each size. A durable PUBACK cannot be faster. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/histogram.h"

#define FILE_SIZE (16u << 20)

int main(int argc, char **argv)
{
    static const size_t sizes[] = {512, 4096, 65536};
    char path[4096];
    void *buffer;
    if (argc < 2 || posix_memalign(&buffer, 4096, 1u << 20)) {
        fprintf(stderr, "usage: disk_sync DIR [SECONDS]\n");
        return 2;
    }
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    memset(buffer, 0x5a, 1u << 20);
    snprintf(path, sizeof path, "%s/disk_sync.tmp", argv[1]);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_DIRECT | O_DSYNC, 0600);
    if (fd < 0) {
        perror(path);
        return 1;
    }
    for (size_t at = 0; at < FILE_SIZE; at += 1u << 20)
        if (pwrite(fd, buffer, 1u << 20, (off_t)at) < 0)
            perror("disk_sync: write");
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        static struct histogram latency;
        histogram_init(&latency);
        mono_ns end = clock_mono() + (int64_t)(seconds / 3 * 1e9);
        for (size_t at = 0; clock_mono() < end; at = (at + sizes[i]) % (FILE_SIZE - sizes[i])) {
            mono_ns begin = clock_mono();
            if (pwrite(fd, buffer, sizes[i], (off_t)(at / 512 * 512)) < 0) {
                perror("disk_sync: write");
                return 1;
            }
            histogram_record(&latency, (uint64_t)(clock_mono() - begin));
        }
        printf("disk sync of %6zu B: p50 %8.1f us  p99 %8.1f us  (%lu writes)\n", sizes[i], (double)histogram_quantile(&latency, 0.5) / 1e3,
               (double)histogram_quantile(&latency, 0.99) / 1e3, histogram_count(&latency));
    }
    close(fd);
    unlink(path);
    return 0;
}
