#include "broker/core/publish_job.h"

#include <stdlib.h>

#include "broker/actor/msg.h"

void publish_job_free(struct publish_job *job)
{
    msg_unref(job->msg);
    free(job->held.data);
    free(job);
}
