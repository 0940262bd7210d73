/* A request to the store reader and its answer, one block: OP_STORE_READ, OP_STORE_READ_DONE (durable/store_reader.h). */
#ifndef TIDEGATE_BROKER_ACTOR_STORE_READ_H
#define TIDEGATE_BROKER_ACTOR_STORE_READ_H

#include <stdbool.h>
#include <stdint.h>

struct msg;

#define STORE_READ_MAX 32 /* positions of one request */

enum store_read_kind {
    STORE_READ_QUEUE, /* the messages of these positions, as `session` wants them */
    STORE_READ_RUN,   /* the session's first run at or after `run` of which it still wants anything: those positions, and the messages as
                         far as STORE_READ_BYTES goes.
                         A damaged run has count 0 and `run` set: its messages cannot be found any more before the next start */
    STORE_READ_BODIES /* the messages alone: retained values */
};

enum store_item_state {
    STORE_ITEM_ASKED,   /* not looked at: STORE_READ_BYTES was used up, ask again */
    STORE_ITEM_FOUND,   /* msg is set, unless only the cost was asked for */
    STORE_ITEM_GONE,    /* nobody wants it any more, or it was never there */
    STORE_ITEM_CORRUPT, /* damaged: counted and reported with its key */
    /* Never an answer; set by the asker: */
    STORE_ITEM_KNOWN,         /* it has or had the message elsewhere */
    STORE_ITEM_OVER_MESSAGES, /* it has to go, */
    STORE_ITEM_OVER_BYTES,    /* by that bound of the session's queue */
};

struct store_read_item {
    uint64_t sequence;
    struct msg *msg; /* taken by who gets the answer; sequence and everything else set */
    uint32_t *ids;   /* subscription identifiers, own block (free), NULL when there are none */
    uint32_t id_count;
    uint8_t qos;     /* as the session wants it */
    uint8_t options; /* struct record_recipient */
    uint8_t state;   /* enum store_item_state */
    uint32_t cost;   /* msg_cost() of what is found; likewise of what is damaged, 0 where that is not known. Not of STORE_READ_BODIES */
};

/* Allocated and freed by the asker. */
struct store_read {
    uint64_t session; /* or the asker's own ticket for STORE_READ_BODIES */
    uint64_t ticket;  /* the asker's, untouched */
    uint64_t run;     /* STORE_READ_RUN: from here; out: where the run found begins, 0 = there is none */
    uint32_t count;   /* items; of STORE_READ_RUN out */
    uint8_t kind;     /* enum store_read_kind */
    bool costs_only;  /* no messages: the asker lets them go */
    struct store_read_item items[STORE_READ_MAX];
};

/* Drop an answer that nobody wants: messages, identifiers, block. NULL is fine. */
void store_read_free(struct store_read *read);

#endif
