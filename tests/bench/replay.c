/* Replay recorded series as a fleet: one MQTT client a device, QoS 1, each row one JSON object with its original time.
 *
 *   replay --port P [--topic 'fleet/%s/telemetry'] [--window 32] [--rate ROWS_PER_S] [--quiet] FILE.csv[.gz]...
 *
 * CSV: a header line; an optional first column `device`; then the time (`ts_ms` in Unix ms, or `date` as YYYY-MM-DD HH:MM:SS); every other
 * column is a metric, an empty field is missing. Without a device column the file's name is the device. A client that loses its connection
 * comes back and sends on from the first row that was not acknowledged: what is acknowledged is the broker's, what is not is ours. Ends
 * with one line of key=value: rows, points, seconds, and the first and last time. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/bench/bench_options.h"

#define COLUMNS_MAX 1024
#define DEVICES_MAX 10000
#define RECONNECT_BASE_MS 50 /* doubled up to the maximum, with jitter */
#define RECONNECT_MAX_MS 2000

struct row {
    char *payload;
    uint32_t size;
};

/* One device: its rows in the file's order and its connection. */
struct device {
    char topic[400], client_id[128];
    struct row *rows;
    size_t row_count, row_capacity;
    size_t acked, sent; /* rows; acknowledgements come in order */
    int fd;             /* -1 = not connected */
    bool connected;     /* CONNACK seen */
    mono_ns retry_at;
    int retry_ms;
    uint8_t *out; /* bytes of the packet that the kernel took in part */
    size_t out_size, out_at;
    uint8_t rest[4];
    size_t rest_size;
};

static int port, window = 32;
static bool quiet;
static double rate_max;
static const char *topic_format = "fleet/%s/telemetry";
static struct device *devices;
static size_t device_count, rows_total, points_total, rows_acked, reconnects;
static int64_t time_first = INT64_MAX, time_last = INT64_MIN;
static int epoll_fd;

static struct device *device_get(const char *name)
{
    static size_t last;
    char topic[sizeof devices->topic];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(topic, sizeof topic, topic_format, name);
#pragma GCC diagnostic pop
    if (last < device_count && !strcmp(devices[last].topic, topic))
        return &devices[last];
    for (last = 0; last < device_count; last++)
        if (!strcmp(devices[last].topic, topic))
            return &devices[last];
    if (device_count == DEVICES_MAX) {
        fprintf(stderr, "replay: more than %d devices\n", DEVICES_MAX);
        exit(1);
    }
    struct device *device = &devices[device_count++];
    device->fd = -1;
    memcpy(device->topic, topic, sizeof topic);
    snprintf(device->client_id, sizeof device->client_id, "replay-%.100s", name);
    return device;
}

static bool parse_time(int64_t *ms_out, const char *text)
{
    struct tm tm = {0};
    char *end;
    if (strchr(text, ':')) {
        if (sscanf(text, "%d-%d-%d %d:%d:%d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec) != 6)
            return false;
        tm.tm_year -= 1900;
        tm.tm_mon -= 1;
        *ms_out = (int64_t)timegm(&tm) * 1000;
        return true;
    }
    *ms_out = (int64_t)strtod(text, &end);
    return end != text;
}

/* JSON takes a decimal number as it stands, but neither nan nor inf nor a leading plus or point. */
static bool is_json_number(const char *text)
{
    char *end;
    strtod(text, &end);
    return *text && *end == '\0' && strspn(text, "0123456789.eE+-") == strlen(text) && *text != '+' && *text != '.';
}

static void add_row(struct device *device, int64_t ms, char *const *names, char *const *fields, int count)
{
    char *payload = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&payload, &size);
    int points = 0;
    fprintf(out, "{\"ts\":%" PRId64, ms);
    for (int i = 0; i < count; i++)
        if (is_json_number(fields[i])) {
            fprintf(out, ",\"%s\":%s", names[i], fields[i]);
            points++;
        }
    fputc('}', out);
    fclose(out);
    if (points == 0) {
        free(payload);
        return;
    }
    if (device->row_count == device->row_capacity) {
        device->row_capacity = device->row_capacity ? device->row_capacity * 2 : 64;
        device->rows = realloc(device->rows, device->row_capacity * sizeof *device->rows);
    }
    device->rows[device->row_count++] = (struct row){payload, (uint32_t)size};
    rows_total++;
    points_total += (size_t)points;
    time_first = ms < time_first ? ms : time_first;
    time_last = ms > time_last ? ms : time_last;
}

static int split(char *line, char **fields)
{
    int count = 0;
    line[strcspn(line, "\r\n")] = '\0';
    for (char *at = line; at && count < COLUMNS_MAX; count++) {
        fields[count] = strsep(&at, ",");
    }
    return count;
}

static void load_file(const char *path)
{
    char command[4200], name[256], *line = NULL, *header = NULL, *names[COLUMNS_MAX], *fields[COLUMNS_MAX];
    size_t line_size = 0, header_size = 0;
    const char *slash = strrchr(path, '/');
    snprintf(name, sizeof name, "%.*s", (int)strcspn(slash ? slash + 1 : path, "."), slash ? slash + 1 : path);
    snprintf(command, sizeof command, "gzip -dcf -- '%s'", path);
    FILE *file = popen(command, "r");
    if (!file || getline(&header, &header_size, file) <= 0) {
        fprintf(stderr, "replay: %s: cannot be read\n", path);
        exit(1);
    }
    int columns = split(header, names), first = !strcmp(names[0], "device") ? 1 : 0;
    while (getline(&line, &line_size, file) > 0) {
        int64_t ms;
        int count = split(line, fields);
        if (count != columns || !parse_time(&ms, fields[first]))
            continue;
        char prefixed[600];
        if (first)
            snprintf(prefixed, sizeof prefixed, "%s-%s", name, fields[0]);
        add_row(device_get(first ? prefixed : name), ms, names + first + 1, fields + first + 1, columns - first - 1);
    }
    free(line);
    free(header);
    if (pclose(file) != 0) {
        fprintf(stderr, "replay: %s: cannot be unpacked\n", path);
        exit(1);
    }
}

static size_t put_string(uint8_t *at, const char *text, size_t size)
{
    at[0] = (uint8_t)(size >> 8);
    at[1] = (uint8_t)size;
    memcpy(at + 2, text, size);
    return size + 2;
}

static size_t put_header(uint8_t *at, uint8_t first, size_t length)
{
    size_t size = 1;
    at[0] = first;
    do {
        at[size] = (uint8_t)((length & 0x7f) | (length > 0x7f ? 0x80 : 0));
        length >>= 7;
        size++;
    } while (length);
    return size;
}

static void device_lost(struct device *device)
{
    if (device->fd >= 0) {
        close(device->fd);
        reconnects += device->connected;
    }
    device->retry_ms = device->retry_ms ? device->retry_ms * 2 : RECONNECT_BASE_MS;
    if (device->retry_ms > RECONNECT_MAX_MS)
        device->retry_ms = RECONNECT_MAX_MS;
    device->retry_at = clock_mono() + (device->retry_ms + rand() % device->retry_ms) * NS_PER_MS;
    device->fd = -1;
    device->connected = false;
    device->sent = device->acked;
    device->out_size = device->out_at = device->rest_size = 0;
}

/* Give bytes to the socket; what it does not take waits in `out`. */
static void device_write(struct device *device, const uint8_t *bytes, size_t size)
{
    ssize_t taken = send(device->fd, bytes, size, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        device_lost(device);
        return;
    }
    taken = taken < 0 ? 0 : taken;
    if ((size_t)taken == size)
        return;
    device->out_size = size - (size_t)taken;
    device->out_at = 0;
    device->out = realloc(device->out, device->out_size);
    memcpy(device->out, bytes + taken, device->out_size);
}

static void device_open(struct device *device)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint8_t packet[256];
    int on = 1;
    device->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (device->fd < 0 || connect(device->fd, (struct sockaddr *)&address, sizeof address)) {
        device_lost(device);
        return;
    }
    setsockopt(device->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(device->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, device->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = device});
    size_t id_size = strlen(device->client_id), used = put_header(packet, 0x10, 12 + id_size);
    memcpy(packet + used, "\x00\x04MQTT\x04\x02\x00\x3c", 10);
    used += 10;
    used += put_string(packet + used, device->client_id, id_size);
    device_write(device, packet, used);
}

/* Send rows while the window has room and the socket takes them. */
static void device_send(struct device *device, size_t *budget)
{
    while (device->connected && device->sent < device->row_count && device->sent - device->acked < (size_t)window && *budget) {
        if (device->out_size) {
            ssize_t taken = send(device->fd, device->out + device->out_at, device->out_size - device->out_at, MSG_NOSIGNAL);
            if (taken < 0 && errno != EAGAIN) {
                device_lost(device);
                return;
            }
            device->out_at += taken > 0 ? (size_t)taken : 0;
            if (device->out_at < device->out_size)
                return;
            device->out_size = 0;
        }
        const struct row *row = &device->rows[device->sent];
        size_t topic_size = strlen(device->topic);
        uint8_t *packet = malloc(topic_size + row->size + 16);
        size_t used = put_header(packet, 0x32, 2 + topic_size + 2 + row->size);
        uint16_t id = (uint16_t)(device->sent % 65535 + 1);
        used += put_string(packet + used, device->topic, topic_size);
        packet[used++] = (uint8_t)(id >> 8);
        packet[used++] = (uint8_t)id;
        memcpy(packet + used, row->payload, row->size);
        device->sent++;
        --*budget;
        device_write(device, packet, used + row->size);
        free(packet);
    }
}

static void device_on_packet(struct device *device, const uint8_t *packet)
{
    if (packet[0] == 0x20 && packet[3] == 0) {
        device->connected = true;
        device->retry_ms = 0;
    } else if (packet[0] == 0x40 && device->acked < device->sent && (packet[2] << 8 | packet[3]) == (int)(device->acked % 65535 + 1)) {
        device->acked++;
        rows_acked++;
    } else {
        fprintf(stderr, "replay: %s: unexpected packet %02x %02x %02x %02x\n", device->client_id, packet[0], packet[1], packet[2],
                packet[3]);
        exit(1);
    }
}

static void device_read(struct device *device)
{
    uint8_t buffer[4096];
    memcpy(buffer, device->rest, device->rest_size);
    ssize_t got = recv(device->fd, buffer + device->rest_size, sizeof buffer - sizeof device->rest, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        device_lost(device);
        return;
    }
    size_t size = (size_t)got + device->rest_size, at = 0;
    for (; size - at >= 4; at += 4)
        device_on_packet(device, buffer + at);
    device->rest_size = size - at;
    memcpy(device->rest, buffer + at, device->rest_size);
}

static void show_progress(mono_ns start, bool last)
{
    static mono_ns shown;
    mono_ns now = clock_mono();
    bool terminal = isatty(STDERR_FILENO);
    if (quiet || (!last && now - shown < (terminal ? NS_PER_S / 5 : 5 * NS_PER_S)))
        return;
    shown = now;
    fprintf(stderr, "%s%zu of %zu rows acknowledged (%.0f %%), %.0f rows/s%s", terminal ? "\r" : "", rows_acked, rows_total,
            100.0 * (double)rows_acked / (double)rows_total, (double)rows_acked / ((double)(now - start + 1) / 1e9),
            terminal && !last ? "  " : "\n");
}

/* One turn over all devices: connect what is due, send what the rate allows, take acknowledgements. */
static void step(mono_ns start)
{
    struct epoll_event events[256];
    static size_t sent_in_all;
    mono_ns now = clock_mono();
    size_t allowed = rate_max > 0 ? (size_t)((double)(now - start) / 1e9 * rate_max) + 1 : SIZE_MAX;
    size_t budget = allowed > sent_in_all ? allowed - sent_in_all : 0, before = budget;
    for (size_t i = 0; i < device_count; i++) {
        struct device *device = &devices[i];
        if (device->fd < 0 && device->acked < device->row_count && now >= device->retry_at)
            device_open(device);
        device_send(device, &budget);
    }
    sent_in_all += before - budget;
    int count = epoll_wait(epoll_fd, events, 256, 2);
    for (int i = 0; i < count; i++) {
        struct device *device = events[i].data.ptr;
        if (device->fd >= 0)
            device_read(device);
    }
}

int main(int argc, char **argv)
{
    const struct bench_option options[] = {
        {"port", .number = &port},   {"topic", .text = &topic_format}, {"window", .number = &window},
        {"rate", .real = &rate_max}, {"quiet", .flag = &quiet},        {0},
    };
    bench_options_parse(argc, argv, options);
    if (port == 0 || optind == argc || window < 1 || !strstr(topic_format, "%s")) {
        fprintf(stderr,
                "usage: replay --port P [--topic 'fleet/%%s/telemetry'] [--window N] [--rate ROWS_PER_S] [--quiet] FILE.csv[.gz]...\n");
        return 2;
    }
    devices = calloc(DEVICES_MAX, sizeof *devices);
    for (int i = optind; i < argc; i++)
        load_file(argv[i]);
    epoll_fd = epoll_create1(0);
    mono_ns start = clock_mono();
    while (rows_acked < rows_total) {
        step(start);
        show_progress(start, false);
    }
    show_progress(start, true);
    printf("devices=%zu rows=%zu points=%zu seconds=%.3f reconnects=%zu first_ms=%" PRId64 " last_ms=%" PRId64 "\n", device_count,
           rows_total, points_total, (double)(clock_mono() - start) / 1e9, reconnects, time_first, time_last);
    return 0;
}
