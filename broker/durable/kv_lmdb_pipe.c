#include "broker/durable/kv_lmdb_pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define COPY_CHUNK (1 << 20) /* bytes between two questions whether to stop */

struct copy {
    MDB_env *env;
    int pipe[2];
    int rc;
};

static void *copy_main(void *arg)
{
    struct copy *copy = (struct copy *)arg;
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGPIPE); /* of this thread and that which LMDB makes: an error is enough */
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    copy->rc = mdb_env_copyfd2(copy->env, copy->pipe[1], MDB_CP_COMPACT);
    close(copy->pipe[1]);
    return NULL;
}

/* From the pipe into the file. Returns 0 at the end of the pipe, ECANCELED, or why not. */
static int copy_through(int from, int to, bool (*is_stopped)(void))
{
    char *chunk = (char *)malloc(COPY_CHUNK);
    int rc = chunk ? 0 : ENOMEM;
    while (rc == 0) {
        ssize_t got = read(from, chunk, COPY_CHUNK);
        if (got == 0)
            break;
        if (is_stopped && is_stopped())
            rc = ECANCELED;
        else if (got < 0)
            rc = errno == EINTR ? 0 : errno;
        for (ssize_t done = 0, put; rc == 0 && done < got; done += put) {
            put = write(to, chunk + done, (size_t)(got - done));
            rc = put < 0 && errno != EINTR ? errno : 0;
            put = put < 0 ? 0 : put;
        }
    }
    free(chunk);
    return rc;
}

int kv_lmdb_pipe_copy(struct MDB_env *env, int fd, bool (*is_stopped)(void))
{
    struct copy copy = {.env = env};
    pthread_t thread;
    if (pipe2(copy.pipe, O_CLOEXEC) != 0)
        return errno;
    (void)fcntl(copy.pipe[1], F_SETPIPE_SZ, COPY_CHUNK);
    int rc = pthread_create(&thread, NULL, copy_main, &copy);
    if (rc != 0) {
        close(copy.pipe[0]);
        close(copy.pipe[1]);
        return rc;
    }
    rc = copy_through(copy.pipe[0], fd, is_stopped);
    close(copy.pipe[0]); /* who still writes gets EPIPE */
    (void)pthread_join(thread, NULL);
    return rc ? rc : copy.rc;
}
