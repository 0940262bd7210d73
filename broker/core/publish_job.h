/* A message whose large record goes into the log turn by turn, and what is to be done when its last block has a number. Owner: the shard.
 */
#ifndef TIDEGATE_BROKER_CORE_PUBLISH_JOB_H
#define TIDEGATE_BROKER_CORE_PUBLISH_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/ack_gate.h"
#include "broker/core/publish_scratch.h"

struct msg;

/* A publish that was logged, or is on its way into the log: what is to be done when its wait is known. One for each large record. */
struct publish_job {
    struct msg *msg;
    struct client_ref client;  /* whose packet it was; unused for a will */
    struct publish_bytes held; /* recipients that wait for the record */
    uint32_t held_count;
    uint16_t packet_id;
    uint8_t qos;        /* 0 = no answer */
    uint8_t reason;     /* of the answer */
    uint8_t durability; /* enum durability, likewise */
    bool is_will;
    bool is_telemetry;
    uint64_t wait_retained;
};

void publish_job_free(struct publish_job *job);

#endif
