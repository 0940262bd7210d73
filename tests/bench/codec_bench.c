/* Stored size and speed of the chunk format on real series.
 *
 *     codec_bench [-r ROWS] FILE.csv[.gz]...
 *
 * A file has a header line; a first column named `device`, where present, groups the rows; then comes `ts_ms` (milliseconds) or `date`
 * (YYYY-MM-DD HH:MM:SS); the others are metrics, an empty field is a missing value. Rows that repeat a time of their device are skipped.
 * A point is one value with its time: 16 bytes raw. Prints, for each file and over all, bytes a point as whole chunks (header, names,
 * statistics, times and CRC included) and millions of points a second, for Gorilla alone, for what a flush chooses and for what a
 * compaction chooses. Each decoded value is compared with the original, bit by bit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "sink/store/chunk.h"

#define FIELDS_MAX 256

struct device_rows {
    char id[256];
    size_t row_count, row_room;
    int64_t *times;
    double *values; /* row_count x column_count */
    uint8_t *present;
};

struct set {
    char name[64];
    size_t column_count;
    char *column_names[FIELDS_MAX];
    size_t order[FIELDS_MAX]; /* columns by name */
    size_t device_count, device_room;
    struct device_rows *devices;
    size_t point_count;
};

struct figures {
    double bytes, encode_s, decode_s, points;
    double column_bytes;
};

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void *grown(void *old, size_t count, size_t size)
{
    void *memory = realloc(old, count * size);
    CHECK(memory != NULL);
    return memory;
}

/* ---- loading ---- */

static size_t split(char *line, char **fields)
{
    size_t count = 0;
    line[strcspn(line, "\r\n")] = 0;
    for (char *at = line; count < FIELDS_MAX; at++) {
        fields[count++] = at;
        at += strcspn(at, ",");
        if (!*at)
            break;
        *at = 0;
    }
    return count;
}

static int64_t time_of(const char *text)
{
    struct tm tm = {0};
    if (strptime(text, "%Y-%m-%d %H:%M:%S", &tm))
        return (int64_t)timegm(&tm) * 1000000000;
    return strtoll(text, NULL, 10) * 1000000;
}

static struct device_rows *device_of(struct set *set, const char *id)
{
    if (set->device_count && strcmp(set->devices[set->device_count - 1].id, id) == 0)
        return &set->devices[set->device_count - 1];
    if (set->device_count == set->device_room) {
        set->device_room = set->device_room * 2 + 8;
        set->devices = grown(set->devices, set->device_room, sizeof *set->devices);
    }
    struct device_rows *dev = &set->devices[set->device_count++];
    memset(dev, 0, sizeof *dev);
    snprintf(dev->id, sizeof dev->id, "%s", id);
    return dev;
}

static void add_row(struct set *set, struct device_rows *dev, int64_t time_ns, char **fields)
{
    if (dev->row_count && time_ns <= dev->times[dev->row_count - 1])
        return;
    if (dev->row_count == dev->row_room) {
        dev->row_room = dev->row_room * 2 + 1024;
        dev->times = grown(dev->times, dev->row_room, sizeof *dev->times);
        dev->values = grown(dev->values, dev->row_room * set->column_count, sizeof *dev->values);
        dev->present = grown(dev->present, dev->row_room * set->column_count, 1);
    }
    size_t row = dev->row_count++;
    dev->times[row] = time_ns;
    for (size_t i = 0; i < set->column_count; i++) {
        bool present = fields[i][0] != 0;
        dev->present[row * set->column_count + i] = present;
        dev->values[row * set->column_count + i] = present ? strtod(fields[i], NULL) : 0;
        set->point_count += present;
    }
}

static const char *const *sort_names;
static int compare_names(const void *a, const void *b) { return strcmp(sort_names[*(const size_t *)a], sort_names[*(const size_t *)b]); }

static void load(struct set *set, const char *path)
{
    memset(set, 0, sizeof *set);
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    snprintf(set->name, sizeof set->name, "%.*s", (int)strcspn(base, "."), base);
    char command[4200];
    size_t length = strlen(path);
    bool gz = length > 3 && strcmp(path + length - 3, ".gz") == 0;
    snprintf(command, sizeof command, "zcat '%s'", path);
    FILE *in = gz ? popen(command, "r") : fopen(path, "r");
    if (!in) {
        perror(path);
        exit(1);
    }
    char *line = NULL, *fields[FIELDS_MAX];
    size_t room = 0, skip = 1;
    CHECK_MSG(getline(&line, &room, in) > 0, "no header line");
    size_t field_count = split(line, fields);
    if (strcmp(fields[0], "device") == 0)
        skip = 2;
    set->column_count = field_count - skip;
    for (size_t i = 0; i < set->column_count; i++) {
        set->column_names[i] = strdup(fields[skip + i]);
        set->order[i] = i;
    }
    sort_names = (const char *const *)set->column_names;
    qsort(set->order, set->column_count, sizeof *set->order, compare_names);
    while (getline(&line, &room, in) > 0) {
        if (split(line, fields) != field_count)
            continue;
        add_row(set, device_of(set, skip == 2 ? fields[0] : set->name), time_of(fields[skip - 1]), fields + skip);
    }
    free(line);
    if (gz)
        pclose(in);
    else
        fclose(in);
}

static void unload(struct set *set)
{
    for (size_t i = 0; i < set->device_count; i++) {
        free(set->devices[i].times);
        free(set->devices[i].values);
        free(set->devices[i].present);
    }
    for (size_t i = 0; i < set->column_count; i++)
        free(set->column_names[i]);
    free(set->devices);
}

/* ---- measuring ---- */

struct work {
    struct chunk_encoder *enc;
    struct column_scratch *scratch;
    double values[FIELDS_MAX][CHUNK_ROWS_MAX];
    uint64_t present[FIELDS_MAX][CHUNK_ROWS_MAX / 64];
    double decoded[CHUNK_ROWS_MAX];
    uint64_t decoded_present[CHUNK_ROWS_MAX / 64];
    int64_t times[CHUNK_ROWS_MAX];
};

static double column_bytes[FIELDS_MAX], column_points[FIELDS_MAX];
static const char *column_codecs[FIELDS_MAX];

static void check_chunk(struct work *work, const struct rows *rows, const struct chunk_view *view)
{
    for (size_t i = 0; i < rows->column_count; i++) {
        const struct chunk_column *column = chunk_find_column(view, rows->columns[i].name);
        if (!column)
            continue;
        CHECK(chunk_decode_column(view, column, work->scratch, work->decoded, work->decoded_present) == ERR_OK);
        for (size_t row = 0; row < rows->row_count; row++) {
            CHECK(rows_bit(work->decoded_present, row) == rows_has(&rows->columns[i], row));
            CHECK(!rows_bit(work->decoded_present, row) || memcmp(&work->decoded[row], &rows->columns[i].values[row], sizeof(double)) == 0);
        }
    }
}

static void measure_chunk(struct work *work, struct figures *fig, struct span device, const struct rows *rows, enum column_effort effort)
{
    struct span bytes;
    double start = now_s();
    CHECK(chunk_encode(work->enc, &bytes, device, rows, effort) == ERR_OK);
    double encoded = now_s();
    struct chunk_view view;
    CHECK(chunk_open(&view, bytes) == ERR_OK);
    CHECK(chunk_decode_times(&view, work->times) == ERR_OK);
    for (size_t i = 0; i < view.column_count; i++)
        CHECK(chunk_decode_column(&view, &view.columns[i], work->scratch, work->decoded, work->decoded_present) == ERR_OK);
    double decoded = now_s();
    fig->bytes += (double)bytes.size;
    fig->encode_s += encoded - start;
    fig->decode_s += decoded - encoded;
    for (size_t i = 0; i < view.column_count; i++) {
        fig->points += view.columns[i].stats.count;
        fig->column_bytes += (double)view.columns[i].bytes.size;
        for (size_t k = 0; k < rows->column_count; k++)
            if (span_equal(rows->columns[k].name, view.columns[i].name)) {
                column_bytes[k] += (double)view.columns[i].bytes.size;
                column_points[k] += view.columns[i].stats.count;
                column_codecs[k] = column_codec_name(view.columns[i].bytes);
            }
    }
    check_chunk(work, rows, &view);
    chunk_close(&view);
}

static void measure(struct work *work, struct figures *fig, const struct set *set, size_t row_count_max, enum column_effort effort)
{
    struct rows_column columns[FIELDS_MAX];
    memset(fig, 0, sizeof *fig);
    memset(column_bytes, 0, sizeof column_bytes);
    memset(column_points, 0, sizeof column_points);
    for (size_t d = 0; d < set->device_count; d++) {
        const struct device_rows *dev = &set->devices[d];
        for (size_t from = 0; from < dev->row_count; from += row_count_max) {
            size_t n = dev->row_count - from < row_count_max ? dev->row_count - from : row_count_max;
            for (size_t i = 0; i < set->column_count; i++) {
                size_t c = set->order[i];
                memset(work->present[i], 0, sizeof work->present[i]);
                for (size_t row = 0; row < n; row++) {
                    work->values[i][row] = dev->values[(from + row) * set->column_count + c];
                    if (dev->present[(from + row) * set->column_count + c])
                        rows_bit_set(work->present[i], row);
                }
                columns[i] = (struct rows_column){span_of_string(set->column_names[c]), work->values[i], work->present[i]};
            }
            struct rows rows = {.row_count = n, .times_ns = dev->times + from, .column_count = set->column_count, .columns = columns};
            measure_chunk(work, fig, span_of_string(dev->id), &rows, effort);
        }
    }
}

static void print_columns(const struct set *set)
{
    for (size_t i = 0; i < set->column_count; i++)
        printf("    %-40s %8.3f  %s\n", set->column_names[set->order[i]], column_points[i] > 0 ? column_bytes[i] / column_points[i] : 0,
               column_codecs[i] ? column_codecs[i] : "");
}

int main(int argc, char **argv)
{
    static const enum column_effort efforts[] = {COLUMN_GORILLA, COLUMN_FAST, COLUMN_DENSE};
    size_t row_count_max = CHUNK_ROWS_FLUSH;
    bool columns = false;
    int first = 1;
    for (; first < argc && argv[first][0] == '-'; first++) {
        if (strcmp(argv[first], "-c") == 0)
            columns = true;
        else if (strcmp(argv[first], "-r") == 0 && first + 1 < argc)
            row_count_max = strtoul(argv[++first], NULL, 10);
    }
    if (first >= argc || row_count_max == 0 || row_count_max > CHUNK_ROWS_MAX) {
        fprintf(stderr, "usage: codec_bench [-c] [-r ROWS_PER_CHUNK] FILE.csv[.gz]...\n");
        return 2;
    }
    struct work *work = calloc(1, sizeof *work);
    CHECK(work != NULL);
    work->enc = chunk_encoder_new();
    work->scratch = column_scratch_new();
    struct figures total[3] = {0};
    double mean[3] = {0};
    printf("%zu rows a chunk; B/point as whole chunks, encode / decode in M points/s\n", row_count_max);
    printf("%-14s %9s | %-22s | %-22s | %-22s\n", "set", "points", "gorilla", "flush", "compacted");
    for (int i = first; i < argc; i++) {
        struct set set;
        load(&set, argv[i]);
        printf("%-14s %9zu", set.name, set.point_count);
        for (size_t e = 0; e < 3; e++) {
            struct figures fig;
            measure(work, &fig, &set, row_count_max, efforts[e]);
            printf(" | %6.3f %6.1f / %6.1f", fig.bytes / fig.points, fig.points / fig.encode_s / 1e6, fig.points / fig.decode_s / 1e6);
            total[e].bytes += fig.bytes;
            total[e].points += fig.points;
            total[e].encode_s += fig.encode_s;
            total[e].decode_s += fig.decode_s;
            mean[e] += fig.bytes / fig.points / (argc - first);
        }
        printf("\n");
        if (columns)
            print_columns(&set);
        unload(&set);
    }
    printf("%-14s %9.0f", "all points", total[0].points);
    for (size_t e = 0; e < 3; e++)
        printf(" | %6.3f %6.1f / %6.1f", total[e].bytes / total[e].points, total[e].points / total[e].encode_s / 1e6,
               total[e].points / total[e].decode_s / 1e6);
    printf("\n%-14s %9s", "mean of sets", "");
    for (size_t e = 0; e < 3; e++)
        printf(" | %6.3f %15s", mean[e], "");
    printf("\n");
    chunk_encoder_free(work->enc);
    column_scratch_free(work->scratch);
    free(work);
    return 0;
}
