#include <stdlib.h>

#include "broker/core/shard.h"
#include "common/check.h"
#include "tests/sim/sim.h"

void sim_pipe_put(struct sim_pipe *pipe, const void *data, size_t size)
{
    if (pipe->size + size > pipe->capacity) {
        pipe->capacity = (pipe->size + size) * 2;
        pipe->bytes = realloc(pipe->bytes, pipe->capacity);
        CHECK(pipe->bytes);
    }
    if (size)
        memcpy(pipe->bytes + pipe->size, data, size);
    pipe->size += size;
}

void sim_pipe_drop(struct sim_pipe *pipe, size_t size)
{
    CHECK(size <= pipe->size);
    pipe->size -= size;
    if (pipe->size)
        memmove(pipe->bytes, pipe->bytes + size, pipe->size);
}

struct sim_conn *sim_conn_open(struct sim *sim, struct sim_client *client)
{
    struct sim_conn *conn = calloc(1, sizeof *conn);
    CHECK(conn);
    *conn = (struct sim_conn){.client = client, .broker_open = true, .next = sim->conns};
    conn->room = !sim->calm && sim_chance(sim, 1, 4) ? 1 + sim_below(sim, 64) : 1 << 20;
    sim->conns = conn;
    return conn;
}

void sim_conn_reset(struct sim *sim, struct sim_conn *conn)
{
    conn->broken = true;
    conn->up.size = conn->down.size = 0;
    if (conn->client) {
        struct sim_client *client = conn->client;
        conn->client = NULL;
        client->conn = NULL;
        sim_client_lost(sim, client);
    }
}

void sim_conn_abandon(struct sim_client *client)
{
    struct sim_conn *conn = client->conn;
    conn->ghost = true;
    conn->ghost_of = client;
    conn->client = NULL;
    conn->down.size = 0;
    client->conn = NULL;
    sim_client_lost(client->sim, client);
}

/* A stranger: nonsense from the first byte on, or behind a good CONNECT. */
void sim_conn_open_garbage(struct sim *sim)
{
    static const uint8_t connect[] = {0x10, 17, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 5, 's', 't', 'r', 'a', 'y'};
    struct sim_conn *conn = sim_conn_open(sim, NULL);
    uint8_t bytes[64];
    conn->ghost = true;
    conn->room = 1 << 20;
    if (sim_chance(sim, 2, 3))
        sim_pipe_put(&conn->up, connect, sizeof connect);
    check_random_fill(&sim->random, bytes, sizeof bytes);
    sim_pipe_put(&conn->up, bytes, 1 + sim_below(sim, sizeof bytes));
}

void sim_conn_reset_ghosts(struct sim *sim, bool all)
{
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->ghost && !conn->broken && (all || sim_chance(sim, 1, 100)))
            sim_conn_reset(sim, conn);
}

/* Its CONNACK has come: an older connection of it may not go on [MQTT-3.1.4-3]. */
void sim_conn_check_taken_over(struct sim *sim, const struct sim_client *client)
{
    for (const struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->ghost_of == client && conn->broker_open && !conn->broken)
            sim_found(sim, "%s is online on a new connection, and the broker goes on with the old one", client->id);
}

void sim_conn_reap(struct sim *sim)
{
    for (struct sim_conn **place = &sim->conns; *place;) {
        struct sim_conn *conn = *place;
        if (conn->client || conn->broker_open) {
            place = &conn->next;
            continue;
        }
        *place = conn->next;
        free(conn->up.bytes);
        free(conn->down.bytes);
        free(conn);
    }
}
