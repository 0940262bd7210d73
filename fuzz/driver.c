/* main() of the fuzz targets when no fuzzing engine is linked: replays a corpus, and a fixed set of mutations of each file.
 *
 *     build/asan/fuzz/utf8_fuzz fuzz/corpus/utf8 crash-1234
 *
 * Each argument is a file or a directory (read to its depth, in name order). For every file the target sees: the file as it is; truncations
 * (every length up to 64 bytes, then in eighths); and MUTATIONS variants with one to four flipped bits or replaced bytes, drawn from a
 * fixed seed and the file's place, so that a failure repeats. A copy of exactly the input's size is given to the target, so that
 * AddressSanitizer sees a read past its end. TIDEGATE_FUZZ_MUTATIONS=n draws n instead. Ends with 1 when nothing was replayed: an empty
 * corpus proves nothing. */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUTATIONS 64
#define FILE_SIZE_MAX ((size_t)64 << 20)

struct driver {
    uint64_t random;
    unsigned long mutation_count;
    unsigned long files;
    unsigned long inputs;
    unsigned long failures;
};

static uint64_t driver_random(struct driver *driver)
{
    uint64_t z = (driver->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* One call of the target with a heap copy of exactly `size` bytes. */
static void driver_run(struct driver *driver, const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        abort();
    if (size)
        memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    driver->inputs++;
}

static void driver_truncate(struct driver *driver, const uint8_t *data, size_t size)
{
    for (size_t cut = 0; cut < size && cut < 64; cut++)
        driver_run(driver, data, cut);
    for (size_t eighth = 1; size > 64 && eighth < 8; eighth++)
        driver_run(driver, data, size / 8 * eighth);
    if (size > 64)
        driver_run(driver, data, size - 1);
}

static void driver_mutate(struct driver *driver, uint8_t *data, size_t size)
{
    for (unsigned long i = 0; size > 0 && i < driver->mutation_count; i++) {
        size_t at[4];
        uint8_t before[4];
        size_t count = 1 + driver_random(driver) % 4;
        for (size_t k = 0; k < count; k++) {
            at[k] = driver_random(driver) % size;
            before[k] = data[at[k]];
            if (driver_random(driver) & 1)
                data[at[k]] ^= (uint8_t)(1u << (driver_random(driver) % 8));
            else
                data[at[k]] = (uint8_t)driver_random(driver);
        }
        driver_run(driver, data, size);
        while (count > 0) {
            count--;
            data[at[count]] = before[count];
        }
    }
}

static void driver_replay_file(struct driver *driver, const char *path, size_t size)
{
    FILE *file = size <= FILE_SIZE_MAX ? fopen(path, "rb") : NULL;
    uint8_t *data = malloc(size ? size : 1);
    if (!file || !data || fread(data, 1, size, file) != size) {
        fprintf(stderr, "fuzz: cannot read %s: %s\n", path, size > FILE_SIZE_MAX ? "too large" : strerror(errno));
        driver->failures++;
    } else {
        driver->random = 0x7164u ^ driver->files;
        driver->files++;
        if (getenv("TIDEGATE_FUZZ_VERBOSE"))
            fprintf(stderr, "%s\n", path);
        driver_run(driver, data, size);
        driver_truncate(driver, data, size);
        driver_mutate(driver, data, size);
    }
    free(data);
    if (file)
        fclose(file);
}

static void driver_replay(struct driver *driver, const char *path);

static int is_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static void driver_replay_directory(struct driver *driver, const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, is_visible, alphasort);
    if (count < 0) {
        fprintf(stderr, "fuzz: cannot list %s: %s\n", path, strerror(errno));
        driver->failures++;
        return;
    }
    for (int i = 0; i < count; i++) {
        char *inner;
        if (asprintf(&inner, "%s/%s", path, entries[i]->d_name) < 0)
            abort();
        driver_replay(driver, inner);
        free(inner);
        free(entries[i]);
    }
    free(entries);
}

static void driver_replay(struct driver *driver, const char *path)
{
    struct stat status;
    if (stat(path, &status) != 0) {
        fprintf(stderr, "fuzz: %s: %s\n", path, strerror(errno));
        driver->failures++;
    } else if (S_ISDIR(status.st_mode)) {
        driver_replay_directory(driver, path);
    } else {
        driver_replay_file(driver, path, (size_t)status.st_size);
    }
}

int main(int argc, char **argv)
{
    const char *mutations = getenv("TIDEGATE_FUZZ_MUTATIONS");
    struct driver driver = {.mutation_count = mutations ? strtoul(mutations, NULL, 10) : MUTATIONS};
    for (int i = 1; i < argc; i++)
        driver_replay(&driver, argv[i]);
    printf("%s: %lu files, %lu inputs replayed\n", argv[0], driver.files, driver.inputs);
    if (driver.files == 0)
        fprintf(stderr, "usage: %s CORPUS_FILE_OR_DIRECTORY...: nothing was replayed\n", argv[0]);
    return driver.files == 0 || driver.failures > 0;
}
