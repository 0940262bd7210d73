/* HTTP for operators: /metrics (Prometheus text) and /healthz (JSON: what is wrong, 200 or 503). Later /api/v1.
 *
 * Runs on the HTTP server's own thread, reads only relaxed cells and what is documented as "Thread: any". All sources outlive it. */
#ifndef TIDEGATE_BROKER_OPS_ADMIN_API_H
#define TIDEGATE_BROKER_OPS_ADMIN_API_H

#include "broker/durable/log_thread.h"
#include "broker/durable/store_thread.h"
#include "broker/guard/cpu_pool.h"
#include "broker/net/handover.h"
#include "broker/net/listener.h"
#include "broker/net/loop.h"
#include "broker/ops/broker_options.h"
#include "broker/route/route_thread.h"

struct admin_sources {
    const struct broker_config *config;
    struct exchange *exchange;
    struct loop **loops;
    uint16_t shard_count;
    struct listener *listeners;
    size_t listener_count;
    struct door *door;
    struct cpu_pool *pool; /* NULL: no TLS */
    struct route_thread *route;
    /* NULL without persistence, all of them. */
    struct store_thread *store;
    struct reader_thread *reader;
    struct log_thread *log;
    struct log_writer *writer;
    struct checkpoint *checkpoint;
    struct kv *kv;
    const _Atomic bool *is_draining;
};

struct admin_api;

/* Register all metrics and listen. Returns 0 or an error with msg. Thread: main. */
enum err admin_api_new(struct admin_api **admin_out, const struct admin_sources *sources, struct errmsg *msg) must_check;
/* Before any of the sources goes. NULL is fine. */
void admin_api_free(struct admin_api *admin);
/* 0 when HTTP is off. */
uint16_t admin_api_port(const struct admin_api *admin);

#endif
