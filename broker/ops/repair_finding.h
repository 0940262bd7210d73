/* A finding of `repair`: told, and what it takes out moved aside. Below the files that find something. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_REPAIR_FINDING_H
#define TIDEGATE_BROKER_OPS_REPAIR_FINDING_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/file.h"

struct repair_options {
    const char *data_dir;
    uint64_t checkpoint_bytes_max; /* map size of a new database */
    bool yes;                      /* carry out; otherwise tell only */
    FILE *out;                     /* findings, for people */
};

struct repair {
    const struct repair_options *options;
    struct fs *fs;
    struct errmsg *msg;
    /* Paths; aside is made with the first thing that goes there. */
    char log[FILE_PATH_MAX], checkpoint[FILE_PATH_MAX], aside[FILE_PATH_MAX];
    char aside_name[32];
    unsigned found;
};

/* Tell a finding; three lines. Returns whether to carry it out. */
bool repair_find(struct repair *repair, const char *wrong, const char *remedy, const char *loss);
/* Make the directory for what is taken out, if it is not there, and PART in it (NULL: only it). */
enum err repair_make_aside(struct repair *repair, const char *part) must_check;
/* Move data_dir/NAME (a relative path of one or two parts) aside. */
enum err repair_move_aside(struct repair *repair, const char *name) must_check;

#endif
