/* The operator's commands on a data directory: backup, restore, repair. Here is what they have in common with a command line: which is
 * meant, what is said on which stream, and the exit status.
 *
 * Findings and what was done go to stdout, the reason of a failure to stderr. Status 0: done, or nothing to do; 1: failed, or (repair
 * without --yes) there is something to do. Thread: main, in a process that runs nothing else. */
#ifndef TIDEGATE_BROKER_OPS_MAINTENANCE_H
#define TIDEGATE_BROKER_OPS_MAINTENANCE_H

#include <stdbool.h>
#include <stdint.h>

struct maintenance_options {
    const char *command;           /* "backup", "restore", "repair" */
    const char *dir;               /* of the backup; NULL for repair */
    bool yes;                      /* repair: carry out */
    const char *data_dir;          /* persistence_location */
    uint64_t checkpoint_bytes_max; /* map size of a database that repair makes */
};

bool maintenance_is_command(const char *word);
/* Does the command take a directory? */
bool maintenance_wants_dir(const char *command);
/* Returns the exit status. */
int maintenance_run(const struct maintenance_options *options);

#endif
