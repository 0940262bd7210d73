/* The sink's HTTP API: queries, metrics, health.
 *
 *   GET  /api/v1/query?device=D[&metric=M]...[&from=T][&to=T][&limit=N][&format=json|csv|table]
 *        Rows of one device in the order of time. metric: repeatable, all when absent. from, to (inclusive): RFC 3339, a number (s, ms, us,
 * ns by its size), or relative to now (-1h); absent: no bound. limit: rows, at most query_row_limit. GET
 * /api/v1/devices[?prefix=P][&after=D][&limit=N]     names in order of bytes, with their newest event time POST /api/v1/flush commit what
 * was read so far; answers when it is on disk GET  /metrics, /healthz (503 when failed)
 *
 * Answers carry the watermark: everything that the broker received before it is in. Thread: the HTTP server's. */
#ifndef TIDEGATE_SINK_QUERY_QUERY_API_H
#define TIDEGATE_SINK_QUERY_QUERY_API_H

#include "common/http.h"
#include "sink/sink_loop.h"

struct query_api;

/* Listen on config's address and port, and serve. Everything is borrowed for its life. */
must_check enum err query_api_new(struct query_api **api_out, struct sink_loop *loop, const struct sink_config *config,
                                  struct metrics_registry *metrics, struct errmsg *msg);
void query_api_free(struct query_api *api);
uint16_t query_api_port(const struct query_api *api);

#endif
