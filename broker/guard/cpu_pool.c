#include "broker/guard/cpu_pool.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/check.h"

struct cpu_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct cpu_job *first, **last;
    bool is_stopping;
    struct cpu_pool_config config;
    struct cpu_pool_stats stats;
    unsigned started; /* threads, for their names */
    unsigned thread_count;
    pthread_t threads[64];
};

/* Locked. */
static struct cpu_job *cpu_pool_take(struct cpu_pool *pool)
{
    struct cpu_job *job = pool->first;
    pool->first = job->next;
    if (!pool->first)
        pool->last = &pool->first;
    job->next = NULL;
    queue_stats_pop(&pool->stats.queue, job->bytes, pool->first ? pool->first->queued_ns : 0);
    return job;
}

static void *cpu_pool_main(void *arg)
{
    struct cpu_pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    char name[16];
    (void)snprintf(name, sizeof name, "%.11s-%u", pool->config.thread_name, pool->started++ % 1000);
    pthread_setname_np(pthread_self(), name);
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), pool->config.nice);
    for (;;) {
        while (!pool->first && !pool->is_stopping)
            pthread_cond_wait(&pool->wake, &pool->lock);
        if (!pool->first)
            break;
        struct cpu_job *job = cpu_pool_take(pool);
        mono_ns begun = clock_mono();
        bool expired = pool->is_stopping || begun > job->deadline_ns;
        histogram_record(&pool->stats.wait_ns, (uint64_t)(begun - job->queued_ns));
        pthread_mutex_unlock(&pool->lock);
        if (!expired)
            job->run(job);
        mono_ns ended = clock_mono();
        job->done(job, expired);
        pthread_mutex_lock(&pool->lock);
        counter_inc(expired ? &pool->stats.expired : &pool->stats.done);
        if (!expired)
            histogram_record(&pool->stats.run_ns, (uint64_t)(ended - begun));
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

enum err cpu_pool_new(struct cpu_pool **pool_out, const struct cpu_pool_config *config)
{
    CHECK(config->thread_count >= 1);
    CHECK(config->thread_count <= 64);
    struct cpu_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return ERR_NOMEM;
    pool->config = *config;
    pool->last = &pool->first;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    histogram_init(&pool->stats.wait_ns);
    histogram_init(&pool->stats.run_ns);
    for (; pool->thread_count < config->thread_count; pool->thread_count++) {
        if (pthread_create(&pool->threads[pool->thread_count], NULL, cpu_pool_main, pool) != 0) {
            cpu_pool_free(pool);
            return ERR_NOMEM;
        }
    }
    *pool_out = pool;
    return ERR_OK;
}

void cpu_pool_free(struct cpu_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->is_stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

bool cpu_pool_try_submit(struct cpu_pool *pool, struct cpu_job *job)
{
    pthread_mutex_lock(&pool->lock);
    bool taken = !pool->is_stopping && pool->stats.queue.messages < pool->config.queue_max;
    if (taken) {
        job->next = NULL;
        job->queued_ns = clock_mono();
        *pool->last = job;
        pool->last = &job->next;
        queue_stats_push(&pool->stats.queue, job->bytes, job->queued_ns);
        pthread_cond_signal(&pool->wake);
    } else {
        counter_inc(&pool->stats.refused);
    }
    pthread_mutex_unlock(&pool->lock);
    return taken;
}

const struct cpu_pool_stats *cpu_pool_get_stats(const struct cpu_pool *pool) { return &pool->stats; }
