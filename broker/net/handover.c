#include "broker/net/handover.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/mqtt/packet.h"
#include "broker/net/tcp.h"
#include "common/check.h"
#include "common/logger.h"

#define DOOR_MAGIC 0x444f4f52u
#define GUEST_MAGIC 0x47554553u
#define DOOR_ACCEPT_BATCH 64                /* accepted for one event, so that guests get their share */
#define DOOR_ERROR_PAUSE_NS (NS_PER_S / 10) /* after EMFILE and its like: descriptors come back when connections end */
#define DOOR_RETRY_NS NS_PER_MS             /* a home whose ring is full is tried again */
#define DOOR_CONNECT_SIZE_MAX (1u << 20)    /* bytes; the largest legal CONNECT without user properties is below 580 KiB */
#define DOOR_TLS_JOB_BYTES 36864            /* what a connection in the handshake keeps in memory, for the queue's bytes */

enum guest_state { GUEST_HANDSHAKE, GUEST_COMPUTING, GUEST_READING, GUEST_DEFERRED, GUEST_GONE };

/* A connection before its home. Owner: the door; while COMPUTING its transport belongs to the pool. */
struct guest {
    uint32_t magic;
    uint8_t state;
    bool has_poll; /* the poll handle is initialised, and perhaps closing */
    bool expired;  /* the pool did not run it */
    enum transport_step step;
    struct door *door;
    struct listener *listener;
    struct transport transport;
    mono_ns accepted_ns;
    mono_ns due_ns;               /* DEFERRED */
    struct list_node node;        /* in door->guests, by accepted_ns */
    struct list_node parked;      /* in door->deferred, by due_ns */
    struct guest *completed_next; /* in door->completed */
    uint8_t *bytes;               /* read so far, when that is not yet a whole packet, or while DEFERRED */
    uint32_t size, capacity;
    struct cpu_job job;
    struct errmsg why;
    char peer[LOOP_PEER_SIZE];
    uv_poll_t poll;
};

/* One listening socket in the loop. */
struct door_socket {
    uv_poll_t poll;
    struct door *door;
    struct listener *listener;
    int fd;
};

struct door {
    uint32_t magic;
    struct door_config config;
    uv_loop_t uv;
    uv_async_t async;
    uv_timer_t timer;
    struct door_socket *sockets;
    size_t socket_count;
    mono_ns *accept_again_ns; /* by listener: INT64_MIN = accepting now */
    mono_ns timer_at_ns;      /* INT64_MAX: not armed */
    bool is_crowded;          /* guests_max reached: nobody accepts */
    bool is_stopping;
    struct list_node guests, deferred;
    uint64_t guest_count, guest_bytes, deferred_count, computing_count;
    uint16_t next_home;
    struct admission_bucket accepts, connects;
    pthread_mutex_t completed_lock;
    struct guest *completed;
    _Atomic bool stop_asked;
    pthread_t thread;
    bool is_started;
    struct door_stats stats;
    struct transport_scratch scratch;
    uint8_t buffer[LOOP_READ_SIZE];
};

static void door_schedule(struct door *door);
static void door_accept_pause(struct door *door, struct listener *listener, mono_ns until);
static void door_accept_resume(struct door *door, struct listener *listener);

/* ---- guests: coming and going ---- */

static void door_tell_queues(struct door *door)
{
    struct list_node *first = list_first(&door->guests);
    queue_stats_set(&door->stats.guests, door->guest_count, door->guest_bytes,
                    first ? LIST_ENTRY(first, struct guest, node)->accepted_ns : 0);
    first = list_first(&door->deferred);
    queue_stats_set(&door->stats.deferred, door->deferred_count, 0, first ? LIST_ENTRY(first, struct guest, parked)->accepted_ns : 0);
}

static void guest_free(struct guest *guest)
{
    guest->magic = 0;
    free(guest->bytes);
    free(guest);
}

static void guest_on_poll_closed(uv_handle_t *handle)
{
    struct guest *guest = handle->data;
    CHECK(guest->magic == GUEST_MAGIC);
    guest->has_poll = false;
    if (guest->state == GUEST_GONE)
        guest_free(guest);
}

/* The descriptor leaves our poll set before anybody else may use or close it; the handle's memory is let go later. */
static void guest_close_poll(struct guest *guest)
{
    if (guest->has_poll && !uv_is_closing((uv_handle_t *)&guest->poll))
        uv_close((uv_handle_t *)&guest->poll, guest_on_poll_closed);
}

/* The transport has been moved on or freed; what is left is ours to clear away. */
static void guest_leave(struct guest *guest)
{
    struct door *door = guest->door;
    CHECK(guest->state != GUEST_COMPUTING);
    guest->state = GUEST_GONE;
    list_remove(&guest->node);
    door->guest_count--;
    door->guest_bytes -= guest->capacity;
    if (list_node_is_linked(&guest->parked)) {
        list_remove(&guest->parked);
        door->deferred_count--;
    }
    door_tell_queues(door);
    guest_close_poll(guest);
    if (!guest->has_poll)
        guest_free(guest);
    if (door->is_crowded && door->guest_count < door->config.guests_max && !door->is_stopping) {
        door->is_crowded = false;
        for (size_t i = 0; i < door->config.listener_count; i++)
            door_accept_resume(door, &door->config.listeners[i]);
    }
}

static void guest_drop(struct guest *guest, enum listener_refusal reason, const char *text)
{
    counter_inc(&guest->listener->refused[reason]);
    if (guest->door->config.log_connections)
        LOG_INFO("connection refused", LOG_TEXT("peer", guest->peer), LOG_TEXT("reason", listener_refusal_name(reason)),
                 LOG_TEXT("detail", text));
    guest_close_poll(guest);
    transport_free(&guest->transport);
    guest_leave(guest);
}

/* Refuse with a CONNACK, as cheaply as that goes: one small write into an empty socket buffer. */
static void guest_refuse(struct guest *guest, enum listener_refusal refusal, enum mqtt_reason reason, const uint8_t *data,
                         const struct frame *frame)
{
    struct packet packet;
    (void)packet_decode(&packet, MQTT_V5, MQTT_FROM_CLIENT, frame, data);
    enum mqtt_version version = packet.connect.version;
    if (version == MQTT_V31 || version == MQTT_V311 || version == MQTT_V5) {
        struct packet answer;
        memset(&answer, 0, sizeof answer);
        answer.type = MQTT_CONNACK;
        answer.connack.reason = reason;
        uint8_t bytes[64];
        uint32_t size = packet_encode_size(&answer, version, sizeof bytes);
        /* The version speaks of one return code only for all of these: "server unavailable". */
        if (size == 0) {
            answer.connack.reason = MQTT_REASON_SERVER_UNAVAILABLE;
            size = packet_encode_size(&answer, version, sizeof bytes);
        }
        if (size != 0) {
            (void)packet_encode(bytes, &answer, version, sizeof bytes);
            struct iovec iov = {.iov_base = bytes, .iov_len = size};
            (void)transport_write(&guest->transport, &iov, 1, &guest->door->scratch);
            if (transport_pending(&guest->transport) == 0)
                transport_shutdown(&guest->transport);
        }
    }
    guest_drop(guest, refusal, NULL);
}

/* ---- the way home ---- */

static bool guest_keep_bytes(struct guest *guest, const uint8_t *data, size_t size)
{
    struct door *door = guest->door;
    if (guest->bytes == data)
        return true;
    size_t needed = guest->size + size;
    if (needed > guest->capacity) {
        size_t capacity = align_up(needed, 1024);
        if (door->guest_bytes - guest->capacity + capacity > door->config.guest_bytes_max)
            return false;
        uint8_t *bytes = realloc(guest->bytes, capacity);
        if (!bytes)
            return false;
        door->guest_bytes += capacity - guest->capacity;
        guest->bytes = bytes;
        guest->capacity = (uint32_t)capacity;
    }
    memcpy(guest->bytes + guest->size, data, size);
    guest->size += (uint32_t)size;
    door_tell_queues(door);
    return true;
}

/* Put into the list of those who wait, by time; new ones nearly always belong at its end. */
static void guest_park(struct guest *guest, mono_ns due)
{
    struct door *door = guest->door;
    if (list_node_is_linked(&guest->parked)) {
        list_remove(&guest->parked);
        door->deferred_count--;
    }
    guest->state = GUEST_DEFERRED;
    guest->due_ns = due;
    if (guest->has_poll && !uv_is_closing((uv_handle_t *)&guest->poll))
        (void)uv_poll_stop(&guest->poll);
    struct list_node *place = &door->deferred;
    while (place->prev != &door->deferred && LIST_ENTRY(place->prev, struct guest, parked)->due_ns > due)
        place = place->prev;
    list_insert_before(place, &guest->parked);
    door->deferred_count++;
    door_tell_queues(door);
    door_schedule(door);
}

/* data: all that was read; may be guest->bytes. */
static void guest_go_home(struct guest *guest, const uint8_t *data, size_t size, const struct frame *frame)
{
    struct door *door = guest->door;
    struct span client_id = {0};
    bool has_id = packet_peek_client_id(&client_id, frame, data) && client_id.size > 0;
    uint16_t home = has_id ? shard_home(door->config.hash_key, door->config.shard_count, client_id) : door->next_home;
    struct arrival *arrival = malloc(sizeof *arrival + size);
    if (!arrival) {
        guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    }
    arrival->transport = guest->transport;
    arrival->listener = guest->listener;
    arrival->accepted_ns = guest->accepted_ns;
    memcpy(arrival->peer, guest->peer, sizeof arrival->peer);
    arrival->size = (uint32_t)size;
    memcpy(arrival->bytes, data, size);
    guest_close_poll(guest); /* from the post on the descriptor is the home's */
    mono_ns accepted = guest->accepted_ns;
    struct listener *listener = guest->listener;
    atomic_fetch_add_explicit(&listener->connections, 1, memory_order_relaxed);
    if (!loop_post_arrival(door->config.loops[home], arrival)) {
        atomic_fetch_sub_explicit(&listener->connections, 1, memory_order_relaxed);
        free(arrival);
        if (guest_keep_bytes(guest, data, size))
            guest_park(guest, clock_mono() + DOOR_RETRY_NS);
        else
            guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    }
    if (!has_id)
        door->next_home = (uint16_t)((door->next_home + 1) % door->config.shard_count);
    counter_inc(&listener->handed_over);
    histogram_record(&door->stats.arrival_ns, (uint64_t)(clock_mono() - accepted));
    guest_leave(guest);
}

static bool door_is_full(const struct door *door, const struct listener *listener)
{
    if ((uint64_t)atomic_load_explicit(&((struct listener *)(uintptr_t)listener)->connections, memory_order_relaxed) >=
        listener->config.connections_max)
        return true;
    if (door->config.connections_max == UINT64_MAX)
        return false;
    uint64_t sum = 0;
    for (size_t i = 0; i < door->config.listener_count; i++)
        sum += (uint64_t)atomic_load_explicit(&door->config.listeners[i].connections, memory_order_relaxed);
    return sum >= door->config.connections_max;
}

/* A complete CONNECT: may it come in, and when? */
static void guest_admit(struct guest *guest, const uint8_t *data, size_t size, const struct frame *frame)
{
    struct door *door = guest->door;
    struct listener *listener = guest->listener;
    if (door_is_full(door, listener)) {
        guest_refuse(guest, LISTENER_REFUSED_QUOTA, MQTT_REASON_QUOTA_EXCEEDED, data, frame);
        return;
    }
    mono_ns now = clock_mono(), until;
    mono_ns left = guest->accepted_ns + door->config.connect_timeout_ns - now;
    int64_t defer_max = left < door->config.defer_max_ns ? left : door->config.defer_max_ns;
    switch (admission_take_both(&listener->connects, &door->connects, &until, now, defer_max)) {
    case ADMISSION_ADMIT:
        guest_go_home(guest, data, size, frame);
        return;
    case ADMISSION_DEFER:
        if (guest_keep_bytes(guest, data, size))
            guest_park(guest, until);
        else
            guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    case ADMISSION_REJECT:
        guest_refuse(guest, LISTENER_REFUSED_RATE, MQTT_REASON_CONNECTION_RATE_EXCEEDED, data, frame);
        return;
    }
    UNREACHABLE();
}

static uint32_t guest_packet_size_max(const struct guest *guest)
{
    uint32_t limit = guest->listener->config.packet_size_max;
    return limit < DOOR_CONNECT_SIZE_MAX ? limit : DOOR_CONNECT_SIZE_MAX;
}

static void guest_wait_for(struct guest *guest, int events);

/* What was read so far: is it a CONNECT, and all of it? */
static void guest_look(struct guest *guest, const uint8_t *data, size_t size)
{
    struct frame frame;
    if (size > 0 && data[0] >> 4 != MQTT_CONNECT) {
        guest_drop(guest, LISTENER_REFUSED_NOT_CONNECT, NULL);
        return;
    }
    switch (frame_parse(&frame, data, size, guest_packet_size_max(guest))) {
    case FRAME_BAD:
        guest_drop(guest, frame.bad.reason == MQTT_REASON_PACKET_TOO_LARGE ? LISTENER_REFUSED_OVERSIZED : LISTENER_REFUSED_MALFORMED,
                   frame.bad.text);
        return;
    case FRAME_MORE:
        if (guest_keep_bytes(guest, data, size))
            guest_wait_for(guest, UV_READABLE);
        else
            guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    case FRAME_OK:
        guest_admit(guest, data, size, &frame);
        return;
    }
    UNREACHABLE();
}

static void guest_read(struct guest *guest)
{
    struct door *door = guest->door;
    guest->state = GUEST_READING;
    ssize_t got = transport_read(&guest->transport, door->buffer, sizeof door->buffer, &door->scratch);
    if (got == TRANSPORT_AGAIN) {
        guest_wait_for(guest, UV_READABLE);
        return;
    }
    if (got < 0) {
        guest_drop(guest, LISTENER_REFUSED_CLOSED, NULL);
        return;
    }
    if (guest->size == 0) {
        guest_look(guest, door->buffer, (size_t)got);
        return;
    }
    if (!guest_keep_bytes(guest, door->buffer, (size_t)got)) {
        guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    }
    guest_look(guest, guest->bytes, guest->size);
}

/* ---- TLS ---- */

static void guest_job_run(struct cpu_job *job)
{
    struct guest *guest = (struct guest *)(void *)((char *)job - offsetof(struct guest, job));
    guest->step = transport_handshake(&guest->transport, &guest->why);
}

static void guest_job_done(struct cpu_job *job, bool expired)
{
    struct guest *guest = (struct guest *)(void *)((char *)job - offsetof(struct guest, job));
    struct door *door = guest->door;
    guest->expired = expired;
    pthread_mutex_lock(&door->completed_lock);
    bool first = !door->completed;
    guest->completed_next = door->completed;
    door->completed = guest;
    if (first)
        (void)uv_async_send(&door->async);
    pthread_mutex_unlock(&door->completed_lock);
}

static void guest_compute(struct guest *guest)
{
    struct door *door = guest->door;
    if (guest->has_poll)
        (void)uv_poll_stop(&guest->poll);
    guest->job = (struct cpu_job){
        .run = guest_job_run,
        .done = guest_job_done,
        .deadline_ns = guest->accepted_ns + door->config.connect_timeout_ns,
        .bytes = DOOR_TLS_JOB_BYTES,
    };
    guest->state = GUEST_COMPUTING;
    door->computing_count++;
    if (cpu_pool_try_submit(door->config.pool, &guest->job))
        return;
    door->computing_count--;
    guest->state = GUEST_HANDSHAKE;
    guest_drop(guest, LISTENER_REFUSED_TLS_QUEUE, NULL);
}

static void guest_on_computed(struct guest *guest)
{
    struct door *door = guest->door;
    CHECK(guest->state == GUEST_COMPUTING);
    door->computing_count--;
    guest->state = GUEST_HANDSHAKE;
    if (door->is_stopping)
        guest_drop(guest, LISTENER_REFUSED_STOPPING, NULL);
    else if (guest->expired)
        guest_drop(guest, LISTENER_REFUSED_TIMEOUT, "TLS handshake");
    else if (guest->step == TRANSPORT_FAILED)
        guest_drop(guest, LISTENER_REFUSED_TLS_FAILED, guest->why.text);
    else if (guest->step == TRANSPORT_DONE)
        guest_read(guest);
    else
        guest_wait_for(guest, guest->step == TRANSPORT_WANT_WRITE ? UV_WRITABLE : UV_READABLE);
}

/* ---- events ---- */

static void guest_on_poll(uv_poll_t *poll, int status, int events)
{
    (void)events;
    struct guest *guest = poll->data;
    CHECK(guest->magic == GUEST_MAGIC);
    if (guest->state == GUEST_HANDSHAKE && status == 0)
        guest_compute(guest);
    else if (guest->state == GUEST_READING && status == 0)
        guest_read(guest);
    else if (guest->state == GUEST_HANDSHAKE || guest->state == GUEST_READING)
        guest_drop(guest, LISTENER_REFUSED_CLOSED, NULL);
}

static void guest_wait_for(struct guest *guest, int events)
{
    if (!guest->has_poll) {
        if (uv_poll_init(&guest->door->uv, &guest->poll, guest->transport.fd) != 0) {
            guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
            return;
        }
        guest->poll.data = guest;
        guest->has_poll = true;
        mono_ns expiry = guest->accepted_ns + guest->door->config.connect_timeout_ns;
        if (expiry < guest->door->timer_at_ns)
            door_schedule(guest->door);
    }
    CHECK(uv_poll_start(&guest->poll, events, guest_on_poll) == 0);
}

static void guest_describe_peer(struct guest *guest, const struct sockaddr_storage *address)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)address;
        (void)inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        (void)snprintf(guest->peer, sizeof guest->peer, "[%s]:%u", host, ntohs(v6->sin6_port));
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)address;
        (void)inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): accept4 has filled it in */
        (void)snprintf(guest->peer, sizeof guest->peer, "%s:%u", host, ntohs(v4->sin_port));
    }
}

static void door_welcome(struct door *door, struct listener *listener, int fd, const struct sockaddr_storage *address, mono_ns now)
{
    struct guest *guest = calloc(1, sizeof *guest);
    if (!guest) {
        counter_inc(&listener->refused[LISTENER_REFUSED_MEMORY]);
        close(fd);
        return;
    }
    guest->magic = GUEST_MAGIC;
    guest->door = door;
    guest->listener = listener;
    guest->accepted_ns = now;
    guest->state = GUEST_READING;
    guest->transport = tcp_transport(fd);
    guest_describe_peer(guest, address);
    list_push_back(&door->guests, &guest->node);
    door->guest_count++;
    door_tell_queues(door);
    if (!listener->tls) {
        guest_read(guest);
        return;
    }
    if (tls_accept(&guest->transport, listener->tls, fd) != ERR_OK) {
        guest_drop(guest, LISTENER_REFUSED_MEMORY, NULL);
        return;
    }
    guest->state = GUEST_HANDSHAKE;
    guest_wait_for(guest, UV_READABLE);
}

/* One accept. False: nothing more now, or accepting was paused. */
static bool door_accept_one(struct door *door, struct door_socket *sock)
{
    struct listener *listener = sock->listener;
    if (door->guest_count >= door->config.guests_max) {
        door->is_crowded = true;
        for (size_t i = 0; i < door->config.listener_count; i++)
            door_accept_pause(door, &door->config.listeners[i], INT64_MAX);
        return false;
    }
    mono_ns now = clock_mono(), until;
    if (admission_take_both(&listener->accepts, &door->accepts, &until, now, 0) != ADMISSION_ADMIT) {
        door_accept_pause(door, listener, until);
        return false;
    }
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    int fd = accept4(sock->fd, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    bool is_reserved = fd >= 0 && door->config.fd_end > 0 && fd >= door->config.fd_end; /* the kernel gives the lowest that is free */
    if (fd >= 0 && !is_reserved) {
        counter_inc(&listener->accepted);
        door_welcome(door, listener, fd, &address, now);
        return true;
    }
    int errnum = is_reserved ? EMFILE : errno;
    if (is_reserved)
        close(fd);
    admission_give_back(&listener->accepts);
    admission_give_back(&door->accepts);
    if (errnum == EAGAIN || errnum == EWOULDBLOCK)
        return false;
    counter_inc(&listener->accept_errors);
    if (errnum == EINTR || errnum == ECONNABORTED || errnum == EPROTO)
        return true;
    LOG_ERROR("cannot accept connections", LOG_TEXT("reason", strerror(errnum)));
    door_accept_pause(door, listener, now + DOOR_ERROR_PAUSE_NS);
    return false;
}

static void door_on_listen_poll(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    struct door_socket *sock = poll->data;
    for (int i = 0; i < DOOR_ACCEPT_BATCH && door_accept_one(sock->door, sock); i++)
        continue;
}

static void door_accept_pause(struct door *door, struct listener *listener, mono_ns until)
{
    counter_inc(&door->stats.accept_pauses);
    door->accept_again_ns[listener->index] = until;
    for (size_t i = 0; i < door->socket_count; i++) {
        if (door->sockets[i].listener == listener)
            (void)uv_poll_stop(&door->sockets[i].poll);
    }
    door_schedule(door);
}

static void door_accept_resume(struct door *door, struct listener *listener)
{
    door->accept_again_ns[listener->index] = INT64_MIN;
    for (size_t i = 0; i < door->socket_count; i++) {
        if (door->sockets[i].listener == listener)
            CHECK(uv_poll_start(&door->sockets[i].poll, UV_READABLE, door_on_listen_poll) == 0);
    }
}

/* ---- time ---- */

static void door_expire_guests(struct door *door, mono_ns now)
{
    LIST_EACH_SAFE(node, following, &door->guests)
    {
        struct guest *guest = LIST_ENTRY(node, struct guest, node);
        if (guest->accepted_ns + door->config.connect_timeout_ns > now)
            break;
        /* One that is being computed comes back by itself, and is looked at then. */
        if (guest->state != GUEST_COMPUTING)
            guest_drop(guest, LISTENER_REFUSED_TIMEOUT, NULL);
    }
}

static void door_release_deferred(struct door *door, mono_ns now)
{
    struct list_node *node;
    while ((node = list_first(&door->deferred)) != NULL) {
        struct guest *guest = LIST_ENTRY(node, struct guest, parked);
        if (guest->due_ns > now)
            break;
        struct frame frame;
        CHECK(frame_parse(&frame, guest->bytes, guest->size, guest_packet_size_max(guest)) == FRAME_OK);
        if (door_is_full(door, guest->listener)) /* others have come in while it waited */
            guest_refuse(guest, LISTENER_REFUSED_QUOTA, MQTT_REASON_QUOTA_EXCEEDED, guest->bytes, &frame);
        else
            guest_go_home(guest, guest->bytes, guest->size, &frame);
    }
}

static void door_on_timer(uv_timer_t *timer)
{
    struct door *door = timer->data;
    mono_ns now = clock_mono();
    door->timer_at_ns = INT64_MAX;
    door_expire_guests(door, now);
    door_release_deferred(door, now);
    for (size_t i = 0; i < door->config.listener_count; i++) {
        if (!door->is_crowded && !door->is_stopping && door->accept_again_ns[i] != INT64_MIN && door->accept_again_ns[i] <= now)
            door_accept_resume(door, &door->config.listeners[i]);
    }
    door_schedule(door);
}

/* Arm the timer for the earliest of what waits. */
static void door_schedule(struct door *door)
{
    mono_ns next = INT64_MAX;
    LIST_EACH(node, &door->guests)
    {
        struct guest *guest = LIST_ENTRY(node, struct guest, node);
        if (guest->state == GUEST_COMPUTING)
            continue;
        next = guest->accepted_ns + door->config.connect_timeout_ns;
        break;
    }
    struct list_node *first = list_first(&door->deferred);
    if (first && LIST_ENTRY(first, struct guest, parked)->due_ns < next)
        next = LIST_ENTRY(first, struct guest, parked)->due_ns;
    for (size_t i = 0; i < door->config.listener_count; i++) {
        mono_ns again = door->accept_again_ns[i];
        if (again != INT64_MIN && again < next)
            next = again;
    }
    if (next == door->timer_at_ns)
        return;
    door->timer_at_ns = next;
    if (next == INT64_MAX) {
        (void)uv_timer_stop(&door->timer);
        return;
    }
    mono_ns now = clock_mono();
    uv_update_time(&door->uv);
    CHECK(uv_timer_start(&door->timer, door_on_timer, next <= now ? 0 : (uint64_t)((next - now + NS_PER_MS - 1) / NS_PER_MS), 0) == 0);
}

/* ---- completions and the end ---- */

static void door_take_completed(struct door *door)
{
    pthread_mutex_lock(&door->completed_lock);
    struct guest *list = door->completed;
    door->completed = NULL;
    pthread_mutex_unlock(&door->completed_lock);
    /* Last in came first in the list: turn it round, so that nobody is overtaken for ever. */
    struct guest *ordered = NULL;
    while (list) {
        struct guest *next = list->completed_next;
        list->completed_next = ordered;
        ordered = list;
        list = next;
    }
    while (ordered) {
        struct guest *next = ordered->completed_next;
        guest_on_computed(ordered);
        ordered = next;
    }
}

static void door_begin_stop(struct door *door)
{
    door->is_stopping = true;
    for (size_t i = 0; i < door->socket_count; i++) {
        (void)uv_poll_stop(&door->sockets[i].poll);
        uv_close((uv_handle_t *)&door->sockets[i].poll, NULL);
    }
    for (size_t i = 0; i < door->config.listener_count; i++)
        listener_close_sockets(&door->config.listeners[i]);
    LIST_EACH_SAFE(node, following, &door->guests)
    {
        struct guest *guest = LIST_ENTRY(node, struct guest, node);
        if (guest->state != GUEST_COMPUTING)
            guest_drop(guest, LISTENER_REFUSED_STOPPING, NULL);
    }
    (void)uv_timer_stop(&door->timer);
}

static void door_on_async(uv_async_t *async)
{
    struct door *door = async->data;
    door_take_completed(door);
    if (atomic_load_explicit(&door->stop_asked, memory_order_acquire) && !door->is_stopping)
        door_begin_stop(door);
    if (door->is_stopping && door->computing_count == 0) {
        if (!uv_is_closing((uv_handle_t *)&door->async)) {
            uv_close((uv_handle_t *)&door->async, NULL);
            uv_close((uv_handle_t *)&door->timer, NULL);
        }
    } else if (!door->is_stopping) {
        door_schedule(door);
    }
}

/* ---- life ---- */

static enum err door_init_sockets(struct door *door, struct errmsg *msg)
{
    const struct door_config *config = &door->config;
    for (size_t i = 0; i < config->listener_count; i++)
        door->socket_count += config->listeners[i].socket_count;
    door->sockets = calloc(door->socket_count ? door->socket_count : 1, sizeof *door->sockets);
    door->accept_again_ns = calloc(config->listener_count ? config->listener_count : 1, sizeof *door->accept_again_ns);
    if (!door->sockets || !door->accept_again_ns)
        return err_set(msg, ERR_NOMEM, "door: %s", err_text(ERR_NOMEM));
    size_t at = 0;
    for (size_t i = 0; i < config->listener_count; i++) {
        struct listener *listener = &config->listeners[i];
        CHECK(listener->index == i);
        door->accept_again_ns[i] = INT64_MIN;
        for (size_t j = 0; j < listener->socket_count; j++, at++) {
            struct door_socket *sock = &door->sockets[at];
            sock->door = door;
            sock->listener = listener;
            sock->fd = listener->sockets[j].fd;
            int code = uv_poll_init(&door->uv, &sock->poll, sock->fd);
            if (code != 0)
                return err_set(msg, ERR_IO, "door: %s", uv_strerror(code));
            sock->poll.data = sock;
        }
    }
    return ERR_OK;
}

enum err door_new(struct door **door_out, const struct door_config *config, struct errmsg *msg)
{
    struct door *door = calloc(1, sizeof *door);
    if (!door)
        return err_set(msg, ERR_NOMEM, "door: %s", err_text(ERR_NOMEM));
    door->magic = DOOR_MAGIC;
    door->config = *config;
    door->timer_at_ns = INT64_MAX;
    list_init(&door->guests);
    list_init(&door->deferred);
    pthread_mutex_init(&door->completed_lock, NULL);
    histogram_init(&door->stats.arrival_ns);
    admission_init(&door->accepts, config->accept_rate, config->accept_burst);
    admission_init(&door->connects, config->connection_rate, config->connection_burst);
    int code = uv_loop_init(&door->uv);
    if (code == 0)
        code = uv_async_init(&door->uv, &door->async, door_on_async);
    if (code == 0)
        code = uv_timer_init(&door->uv, &door->timer);
    if (code != 0)
        return err_set(msg, ERR_IO, "door: event loop: %s", uv_strerror(code));
    door->async.data = door->timer.data = door;
    *door_out = door;
    return door_init_sockets(door, msg);
}

static void *door_main(void *arg)
{
    struct door *door = arg;
    pthread_setname_np(pthread_self(), "door");
    for (size_t i = 0; i < door->config.listener_count; i++)
        door_accept_resume(door, &door->config.listeners[i]);
    (void)uv_run(&door->uv, UV_RUN_DEFAULT);
    return NULL;
}

enum err door_start(struct door *door)
{
    int errnum = pthread_create(&door->thread, NULL, door_main, door);
    door->is_started = errnum == 0;
    return errnum == 0 ? ERR_OK : err_from_errno(errnum);
}

void door_stop(struct door *door)
{
    if (!door->is_started)
        return;
    atomic_store_explicit(&door->stop_asked, true, memory_order_release);
    (void)uv_async_send(&door->async);
    pthread_join(door->thread, NULL);
    door->is_started = false;
}

void door_free(struct door *door)
{
    if (!door)
        return;
    CHECK(uv_loop_close(&door->uv) == 0);
    pthread_mutex_destroy(&door->completed_lock);
    free(door->sockets);
    free(door->accept_again_ns);
    free(door);
}

const struct door_stats *door_get_stats(const struct door *door) { return &door->stats; }
const struct admission_bucket *door_accepts(const struct door *door) { return &door->accepts; }
const struct admission_bucket *door_connects(const struct door *door) { return &door->connects; }
