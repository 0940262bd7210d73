#include "broker/core/shard_state.h"

static bool post_to_ring(void *arg, actor_id to, const struct op *op)
{
    struct shard *shard = arg;
    bool is_bulk = op->type == OP_DELIVER || op->type == OP_ROUTE_RETAIN;
    return shard->io->post(shard->io_arg, to, op, !is_bulk);
}

void shard_post(struct shard *shard, actor_id to, const struct op *op) { op_backlog_post(&shard->backlog, post_to_ring, shard, to, op); }
bool shard_post_backlog(struct shard *shard) { return op_backlog_flush(&shard->backlog, post_to_ring, shard); }

uint64_t shard_draw_session_number(struct shard *shard)
{
    shard->session_counter += shard->session_counter ? shard->config.shard_count : shard->config.index + 1u;
    return session_number_of(shard->config.epoch, shard->session_counter);
}

/* xorshift128+, seeded at start. */
uint64_t shard_random(struct shard *shard)
{
    uint64_t a = shard->random_state[0], b = shard->random_state[1];
    shard->random_state[0] = b;
    a ^= a << 23;
    shard->random_state[1] = a ^ b ^ (a >> 18) ^ (b >> 5);
    return shard->random_state[1] + b;
}

/* They need to differ, not to be secret: a random number of this start, and a count. Half of it is the same all the time, which compresses.
 */
void shard_correlation_id(struct shard *shard, uint8_t id_out[RECORD_CORRELATION_SIZE])
{
    store_be64(id_out, shard->correlation_base);
    store_be64(id_out + 8, ++shard->correlation_count);
}

int64_t shard_receive_time(struct shard *shard)
{
    shard->receive_wall_ns = shard->now_wall_ns > shard->receive_wall_ns ? shard->now_wall_ns : shard->receive_wall_ns + 1;
    return shard->receive_wall_ns;
}

bool shard_has_room(const struct shard *shard) { return shard->backlog.count == 0 && ack_gate_has_room(&shard->gate, 0); }
