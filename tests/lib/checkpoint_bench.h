/* A checkpoint over a database in memory, with the next sequence: what tests of the checkpoint's parts do with it. */
#ifndef TIDEGATE_TESTS_LIB_CHECKPOINT_BENCH_H
#define TIDEGATE_TESTS_LIB_CHECKPOINT_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/durable/checkpoint.h"
#include "tests/lib/sim_kv.h"

#define OK(call) assert_int_equal((call), ERR_OK)
#define S(text) span_of_string(text)
#define BENCH_BROKER 0x1122334455667788u
#define BENCH_RANDOM_SEED 99u
#define STAT(b, name) counter_get(&checkpoint_get_stats((b)->checkpoint)->name)
#define NOBODY ((const uint64_t[]){0})

struct bench {
    struct sim_kv *sim;
    struct kv *kv;
    struct checkpoint *checkpoint;
    uint64_t sequence; /* of the last record */
    struct errmsg msg;
};

struct bench_recipients {
    uint8_t bytes[65536];
    size_t size;
};

/* What a load gave, as text: a line for each call. */
struct bench_loaded {
    char text[8192];
    size_t size;
    const uint64_t *known; /* sessions that wants are taken for, ends with 0 */
    bool refuse_retained;
    int corrupt;
};

/* Again, after bench_close(). */
void bench_open(struct bench *b);
void bench_close(struct bench *b);
/* Loses what was not committed. */
void bench_crash(struct bench *b);
/* For cmocka: the state is a struct bench. */
int bench_setup(void **state);
int bench_teardown(void **state);
/* The position before record `next`. */
struct log_cursor_value bench_cursor_at(uint64_t next);
enum err bench_try_commit(struct bench *b);
void bench_commit(struct bench *b);
/* The next record. Returns its sequence. */
uint64_t bench_apply(struct bench *b, struct record rec);
/* Returns all so far, borrowed. */
struct span bench_recipients_add(struct bench_recipients *to, uint64_t session, uint8_t qos, struct span ids);
/* At QoS 1. */
struct record bench_publish_to(struct bench_recipients *to, const uint64_t *sessions, size_t count);
/* To `count` sessions from first_session on. */
uint64_t bench_publish(struct bench *b, uint64_t first_session, size_t count);
void bench_retain(struct bench *b, const char *topic, const char *payload, uint64_t number);
void bench_ack(struct bench *b, uint64_t session, uint64_t sequence);
/* A session of client id "client" that stays 60 s. */
void bench_session(struct bench *b, uint64_t number, bool is_connected);
/* What a tree has: rows; bodies, chunks or values. */
uint64_t bench_rows(struct bench *b, enum kv_tree tree);
uint64_t bench_entries(struct bench *b, enum kv_tree tree);
/* Whether the session wants the message. */
enum err bench_find_want(struct bench *b, uint64_t number, uint64_t sequence);
enum err bench_try_load(struct bench *b, struct bench_loaded *loaded);
/* Commit, die, load: the text must be as expected. known: as in bench_loaded. */
void bench_assert_loads(struct bench *b, const uint64_t *known, const char *expected);
/* The place of a topic's value, as docs/formats.md has it. */
struct span bench_retained_key(uint8_t key_out[16], const char *topic, uint64_t slot);

#endif
