#include "broker/guard/admission.h"

#include "common/check.h"

void admission_init(struct admission_bucket *bucket, uint64_t rate_per_s, uint64_t burst)
{
    CHECK(rate_per_s <= 1000000000u);
    CHECK(burst >= 1);
    atomic_init(&bucket->tat_ns, INT64_MIN / 4);
    bucket->interval_ns = rate_per_s == ADMISSION_UNLIMITED ? 0 : 1000000000 / (int64_t)rate_per_s;
    if (rate_per_s != ADMISSION_UNLIMITED && bucket->interval_ns == 0)
        bucket->interval_ns = 1;
    int64_t burst_max = bucket->interval_ns == 0 ? 1 : INT64_MAX / 4 / bucket->interval_ns;
    bucket->tolerance_ns = bucket->interval_ns * ((int64_t)(burst < (uint64_t)burst_max ? burst : (uint64_t)burst_max));
    atomic_init(&bucket->admitted, 0);
    atomic_init(&bucket->deferred, 0);
    atomic_init(&bucket->rejected, 0);
}

/* Without the counters. */
static enum admission_verdict admission_schedule(struct admission_bucket *bucket, int64_t *until_out, int64_t now_ns, int64_t defer_max_ns)
{
    *until_out = now_ns;
    if (!admission_is_limited(bucket))
        return ADMISSION_ADMIT;
    int64_t tat = atomic_load_explicit(&bucket->tat_ns, memory_order_relaxed);
    for (;;) {
        int64_t next = (tat > now_ns ? tat : now_ns) + bucket->interval_ns;
        int64_t wait = next - bucket->tolerance_ns - now_ns;
        *until_out = wait > 0 ? now_ns + wait : now_ns;
        if (wait > defer_max_ns)
            return ADMISSION_REJECT;
        if (atomic_compare_exchange_weak_explicit(&bucket->tat_ns, &tat, next, memory_order_relaxed, memory_order_relaxed))
            return wait > 0 ? ADMISSION_DEFER : ADMISSION_ADMIT;
    }
}

static enum admission_verdict admission_count(struct admission_bucket *bucket, enum admission_verdict verdict)
{
    _Atomic uint64_t *cell = verdict == ADMISSION_ADMIT   ? &bucket->admitted
                             : verdict == ADMISSION_DEFER ? &bucket->deferred
                                                          : &bucket->rejected;
    atomic_fetch_add_explicit(cell, 1, memory_order_relaxed);
    return verdict;
}

enum admission_verdict admission_take(struct admission_bucket *bucket, int64_t *until_out, int64_t now_ns, int64_t defer_max_ns)
{
    if (defer_max_ns < 0)
        defer_max_ns = 0;
    return admission_count(bucket, admission_schedule(bucket, until_out, now_ns, defer_max_ns));
}

enum admission_verdict admission_take_both(struct admission_bucket *first, struct admission_bucket *second, int64_t *until_out,
                                           int64_t now_ns, int64_t defer_max_ns)
{
    if (defer_max_ns < 0)
        defer_max_ns = 0;
    int64_t until_second;
    enum admission_verdict one = admission_schedule(first, until_out, now_ns, defer_max_ns);
    if (one == ADMISSION_REJECT)
        return admission_count(first, one);
    enum admission_verdict two = admission_schedule(second, &until_second, now_ns, defer_max_ns);
    if (two == ADMISSION_REJECT) {
        admission_give_back(first);
        *until_out = until_second;
        return admission_count(second, two);
    }
    if (until_second > *until_out)
        *until_out = until_second;
    admission_count(first, one);
    admission_count(second, two);
    return one == ADMISSION_DEFER || two == ADMISSION_DEFER ? ADMISSION_DEFER : ADMISSION_ADMIT;
}

void admission_give_back(struct admission_bucket *bucket)
{
    if (admission_is_limited(bucket))
        atomic_fetch_sub_explicit(&bucket->tat_ns, bucket->interval_ns, memory_order_relaxed);
}
