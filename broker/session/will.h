/* A client's last will: what is published in its name when it goes without saying so.
 *
 *   published  when the network connection ends without DISCONNECT 0x00 (takeover included) and the delay has passed, or at the session's
 *              end, whichever is first [MQTT-3.1.2-8]
 *   discarded  by DISCONNECT 0x00 [MQTT-3.14.4-3], by a reconnect within the delay [MQTT-3.1.3-9], once published [MQTT-3.1.2-10]
 *
 * One block; the session owns it. Pure. */
#ifndef TIDEGATE_BROKER_SESSION_WILL_H
#define TIDEGATE_BROKER_SESSION_WILL_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/mqtt/packet.h"
#include "common/bytes.h"
#include "common/record.h"

struct will {
    struct will *next;      /* in the list of wills that wait for room in the log */
    uint64_t publisher;     /* session number */
    uint64_t logged_as;     /* session whose will it is in the log: the publisher, or a number of its own (session_log_owe_will) */
    struct span topic;      /* these five: inside the block */
    struct span properties; /* forwardable */
    struct span payload;
    struct span client_id;
    struct span user_name;
    uint32_t delay_s;
    uint32_t expiry_interval_s; /* counts from its publication */
    bool has_expiry;
    bool is_restored;  /* its connection ended with an earlier start of the broker: the client may be on its way back */
    bool is_paced;     /* of an earlier start, and not yet given its time: many may be due at once */
    bool ends_session; /* the log knows the session for its sake alone: SESSION_DELETE follows its publication */
    bool retain;
    uint8_t qos;
    uint8_t bytes[];
};

/* From a CONNECT with has_will. client_id: the one in force. NULL when memory is short. Returned; freed with will_free(). */
struct will *will_new(const struct packet_connect *connect, struct span client_id, uint64_t publisher);
/* From a record WILL of session `number`, whose client id is taken where the record has none. */
struct will *will_restore(const struct record *rec, struct span client_id, uint64_t number);
/* NULL is fine. */
void will_free(struct will *will);

#endif
