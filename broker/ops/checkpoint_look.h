/* The checkpoint from outside: where it stands, and which of its values do not hold, for backup and repair.
 *
 * LMDB maps its file, and damage inside a page may end the process that walks it. What is not yet known to be sound is therefore looked at
 * in a child process; whatever becomes of that, this one goes on. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_CHECKPOINT_LOOK_H
#define TIDEGATE_BROKER_OPS_CHECKPOINT_LOOK_H

#include "broker/durable/checkpoint.h"

#define CHECKPOINT_LOOK_MAX 10000 /* damaged values that are remembered one by one */

struct checkpoint_damage {
    uint8_t tree; /* enum kv_tree */
    uint8_t key_size;
    uint8_t key[KV_KEY_MAX]; /* key_size 0: the tree itself cannot be walked on from there */
};

struct checkpoint_look {
    bool is_there; /* dir/data.mdb exists */
    enum err err;  /* of opening it; ERR_CORRUPT also when the process that looked at it ended by a signal */
    struct errmsg why;
    struct checkpoint_state state; /* err 0 */
    uint64_t entry_count;
    bool is_lost[KV_TREE_COUNT]; /* walking this tree ended the process */
    bool is_free_damaged;        /* the list of free pages: a writer would meet it */
    uint64_t damage_count;       /* also beyond CHECKPOINT_LOOK_MAX */
    uint32_t damage_known;       /* of `damage` */
    int phase;                   /* of the process that looks: a tree's number, or before (-1) or behind them */
    struct checkpoint_damage damage[CHECKPOINT_LOOK_MAX];
};

/* Look at the database in `dir`. values: walk all trees and check every value. look_out: returned, to be freed. Returns 0 (also when the
 * database is damaged: look->err), ERR_NOMEM, ERR_IO. */
enum err checkpoint_look(struct checkpoint_look **look_out, const char *dir, bool values, struct errmsg *msg) must_check;
/* The same in this process, at a database that is open and that no damage can end the process over (kv_snapshot.h). Returns 0, ERR_NOMEM.
 */
enum err checkpoint_look_kv(struct checkpoint_look **look_out, struct kv *kv, bool values, struct errmsg *msg) must_check;
void checkpoint_look_free(struct checkpoint_look *look);

/* "session 7", "message 12 of session 7 and others" ...: what the value under a key is about. text_out of 160 bytes. */
#define CHECKPOINT_LOOK_TEXT 160
void checkpoint_damage_text(char text_out[CHECKPOINT_LOOK_TEXT], const struct checkpoint_damage *damage);

#endif
