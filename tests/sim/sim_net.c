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
