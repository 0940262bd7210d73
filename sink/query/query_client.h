/* `tidegate-sink query`: asks a running sink over HTTP and prints its answer. Plain sockets; one request, one answer.
 *
 * Blocks. Thread: main of its own short process. */
#ifndef TIDEGATE_SINK_QUERY_QUERY_CLIENT_H
#define TIDEGATE_SINK_QUERY_QUERY_CLIENT_H

#include <stdbool.h>

#include "common/buf.h"

#define QUERY_CLIENT_ANSWER_MAX ((size_t)1 << 30)

/* The header that says that an answer was cut, with the time (ns since 1970) from which to ask on. */
#define QUERY_NEXT_HEADER "Tidegate-Next"

struct query_answer {
    unsigned status;
    bool is_cut;
    int64_t next_ns; /* when cut */
};

/* host: numeric or a name. GET `target` (path with query string). The body goes to `body_out`, what the head says to *answer_out.
 * Returns 0 whatever the status; ERR_NOTFOUND when nobody listens there, ERR_IO, ERR_CORRUPT (not HTTP, or cut short), ERR_TOOLARGE; msg
 * says why. */
must_check enum err query_client_get(const char *host, const char *port, const char *target, struct query_answer *answer_out,
                                     struct buf *body_out, struct errmsg *msg);

/* Append `text` percent-encoded for a query string. */
void query_client_put_escaped(struct buf *out, const char *text);

/* Split http://HOST[:PORT][/] into host and port (copied). Returns 0 or ERR_INVALID. */
must_check enum err query_client_split_url(char host_out[256], char port_out[16], const char *url);

#endif
