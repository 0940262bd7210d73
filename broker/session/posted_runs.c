#include "broker/session/posted_runs.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/position_list.h"

#define CAPACITY_FIRST 4u

struct posted_runs {
    struct position_list *sequences; /* of all; ascending, as those of each */
    uint64_t began, last;            /* numbers */
    uint32_t first, end, capacity;   /* of sizes */
    uint8_t sizes[];                 /* how many sequences each has */
};

_Static_assert(STORE_RUN_MAX <= UINT8_MAX && STORE_RUN_MAX <= STORE_READ_MAX, "a size of a posted run, which is one request");

/* Room for the size of one more. */
static bool reserve(struct posted_runs **place)
{
    struct posted_runs *posted = *place;
    if (posted && posted->end < posted->capacity)
        return true;
    if (posted && posted->first >= posted->capacity / 2) {
        memmove(posted->sizes, posted->sizes + posted->first, posted->end - posted->first);
        posted->end -= posted->first;
        posted->first = 0;
        return true;
    }
    uint32_t capacity = posted ? posted->capacity * 2 : CAPACITY_FIRST;
    struct posted_runs *grown = realloc(posted, sizeof *grown + capacity);
    if (!grown)
        return false;
    if (!posted)
        *grown = (struct posted_runs){0};
    grown->capacity = capacity;
    *place = grown;
    return true;
}

static void drop_all(struct posted_runs **place)
{
    posted_runs_free(*place);
    *place = NULL;
}

bool posted_runs_add(struct posted_runs **place, const struct store_run *run, uint64_t number)
{
    if (!reserve(place) || position_list_push_all(&(*place)->sequences, run->sequences, run->count) != ERR_OK) {
        drop_all(place);
        return false;
    }
    struct posted_runs *posted = *place;
    posted->sizes[posted->end++] = (uint8_t)run->count;
    posted->last = number;
    posted->began = posted->began ? posted->began : number;
    return true;
}

uint32_t posted_runs_take(struct posted_runs **place, struct store_read_item *items_out)
{
    struct posted_runs *posted = *place;
    uint32_t count = posted->sizes[posted->first++];
    for (uint32_t i = 0; i < count; i++) {
        items_out[i] = (struct store_read_item){.state = STORE_ITEM_ASKED};
        bool is_there = position_list_pop(&posted->sequences, &items_out[i].sequence);
        CHECK(is_there);
    }
    if (posted->first == posted->end)
        drop_all(place);
    return count;
}

uint32_t posted_runs_count(const struct posted_runs *posted) { return posted ? position_list_count(posted->sequences) : 0; }

uint64_t posted_runs_first(const struct posted_runs *posted)
{
    uint64_t sequence = UINT64_MAX;
    if (posted)
        position_list_first(posted->sequences, &sequence);
    return sequence;
}

uint64_t posted_runs_began(const struct posted_runs *posted) { return posted->began; }
uint64_t posted_runs_ended(const struct posted_runs *posted) { return posted->last; }

void posted_runs_free(struct posted_runs *posted)
{
    if (posted)
        position_list_free(posted->sequences);
    free(posted);
}
