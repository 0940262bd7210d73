/* A file system in memory that forgets like a real one: for unit tests and the simulator.
 *
 * Per file it keeps what a program sees and what would survive a loss of power, sector by sector (512 B). A write is visible at once and
 * durable after file_sync(), or when it returns for a file opened with FILE_DSYNC; a created, renamed or removed name is durable after
 * fs_sync_dir() of its directory. sim_fs_crash() leaves of everything that was not synced a random subset. A failed sync loses for good
 * what it should have synced, as Linux does. Directories themselves are durable at once.
 *
 * After a crash or kill, the handles concerned are dead: close them (allowed), every other call on them is ERR_IO. sim_fs_fs() gives the
 * struct fs to hand to programs. A FILE_DIRECT handle insists on its alignment by CHECK.
 *
 * Owner: the test. Thread: one. Deterministic by its seed. */
#ifndef TIDEGATE_TESTS_LIB_SIM_FS_H
#define TIDEGATE_TESTS_LIB_SIM_FS_H

#include "common/file.h"

#define SIM_FS_SECTOR 512

struct sim_fs;

/* Operations that can be made to fail; a mask. */
enum sim_fs_op {
    SIM_FS_OPEN = 1,
    SIM_FS_READ = 2,
    SIM_FS_WRITE = 4,
    SIM_FS_SYNC = 8, /* file_sync, fs_sync_dir */
    SIM_FS_TRUNCATE = 16,
    SIM_FS_RENAME = 32,
    SIM_FS_UNLINK = 64,
    SIM_FS_ANY = 127,
};

/* New and empty. `alignment` is what file_alignment() answers (512 to 4096). */
struct sim_fs *sim_fs_new(uint64_t seed, uint32_t alignment);
/* All handles must have been closed. */
void sim_fs_free(struct sim_fs *sim);
struct fs *sim_fs_fs(struct sim_fs *sim);

/* Loss of power: what was not synced survives by sectors and names at random; locks and handles are gone. */
void sim_fs_crash(struct sim_fs *sim);
/* All processes died, the machine did not: all that was written stays; locks and handles are gone. A held write is torn. */
void sim_fs_kill(struct sim_fs *sim);
/* The same for one process: the files opened while sim_fs_set_process() named it. */
void sim_fs_kill_process(struct sim_fs *sim, int process);
/* Files opened from here on belong to this process (0 at first). */
void sim_fs_set_process(struct sim_fs *sim, int process);

/* The n-th operation of the mask from now on (1: the next) fails with `err`; a failed write leaves a random subset of its sectors. 0: none
 * does. With `and_all_after` every later one fails too. */
void sim_fs_fail(struct sim_fs *sim, unsigned ops, uint64_t nth, enum err err, bool and_all_after);
/* How many operations of the mask were done so far. */
uint64_t sim_fs_op_count(const struct sim_fs *sim, unsigned ops);

/* Bytes that all files together may still grow by; beyond, ERR_NOSPACE. UINT64_MAX: no limit. fs_free_bytes() answers it; removing a file
 * gives its bytes back. */
void sim_fs_set_free(struct sim_fs *sim, uint64_t bytes);

/* Two-phase writes: while holding, a write to a FILE_DSYNC file returns success but is under way (visible, not durable) until
 * sim_fs_complete(), which makes it durable. A crash or kill in between tears it. A process has one
 * write under way at a time: the next one completes the one before. A file that is closed meanwhile takes its held write along as done. */
void sim_fs_hold(struct sim_fs *sim, bool hold);
void sim_fs_complete(struct sim_fs *sim);
bool sim_fs_has_held(const struct sim_fs *sim);

/* Refuse direct I/O, as tmpfs does. */
void sim_fs_refuse_direct(struct sim_fs *sim, bool refuse);

/* Look and change behind the programs' back (what is seen and what is durable). ERR_NOTFOUND, ERR_INVALID past the end.
 * data_out  borrowed until the next call on the file system. */
enum err sim_fs_contents(struct sim_fs *sim, const char *path, const uint8_t **data_out, uint64_t *size_out);
enum err sim_fs_overwrite(struct sim_fs *sim, const char *path, uint64_t offset, const void *data, size_t size);
enum err sim_fs_flip_bit(struct sim_fs *sim, const char *path, uint64_t bit_index);
bool sim_fs_exists(struct sim_fs *sim, const char *path);

/* The generator of everything random here; tests may draw from it. */
uint64_t sim_fs_draw(struct sim_fs *sim);

#endif
