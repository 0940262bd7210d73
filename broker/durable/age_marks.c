#include "broker/durable/age_marks.h"

#include <string.h>

static void remove_mark(struct age_marks *marks, uint32_t index)
{
    marks->count--;
    memmove(&marks->marks[index], &marks->marks[index + 1], (marks->count - index) * sizeof marks->marks[0]);
}

/* The one whose place the next can take at the least cost. Marks of an age that was configured shorter stand closer than is needed. */
static void remove_dearest(struct age_marks *marks)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i + 1 < marks->count; i++)
        if (marks->marks[i + 1].steady_ns - marks->marks[i].steady_ns < marks->marks[best + 1].steady_ns - marks->marks[best].steady_ns)
            best = i;
    remove_mark(marks, best);
}

void age_marks_add(struct age_marks *marks, uint64_t sequence, int64_t now_steady_ns, int64_t age_max_ns)
{
    for (uint32_t i = 0; i < marks->count; i++)
        if (marks->marks[i].steady_ns > now_steady_ns)
            marks->marks[i].steady_ns = now_steady_ns;
    if (sequence == 0 || (marks->count > 0 && marks->marks[marks->count - 1].sequence >= sequence))
        return;
    /* The newest moves on until it is a step away from the one before. */
    if (marks->count >= 2 && now_steady_ns - marks->marks[marks->count - 2].steady_ns < age_max_ns / AGE_MARKS_SHARE)
        marks->count--;
    if (marks->count == AGE_MARKS_MAX)
        remove_dearest(marks);
    marks->marks[marks->count++] = (struct age_mark){sequence, now_steady_ns};
}

uint64_t age_marks_reach(struct age_marks *marks, int64_t steady_ns)
{
    while (marks->count > 1 && marks->marks[1].steady_ns <= steady_ns)
        remove_mark(marks, 0);
    return marks->count > 0 && marks->marks[0].steady_ns <= steady_ns ? marks->marks[0].sequence : 0;
}

size_t age_marks_encode(uint8_t value_out[AGE_MARKS_SIZE_MAX], const struct age_marks *marks)
{
    for (uint32_t i = 0; i < marks->count; i++) {
        store_le64(value_out + 16 * i, marks->marks[i].sequence);
        store_le64(value_out + 16 * i + 8, (uint64_t)marks->marks[i].steady_ns);
    }
    return 16 * marks->count;
}

enum err age_marks_decode(struct age_marks *marks_out, struct span value)
{
    *marks_out = (struct age_marks){0};
    if (value.size % 16 != 0 || value.size > AGE_MARKS_SIZE_MAX)
        return ERR_CORRUPT;
    for (size_t at = 0; at < value.size; at += 16) {
        struct age_mark mark = {load_le64(value.data + at), (int64_t)load_le64(value.data + at + 8)};
        const struct age_mark *last = marks_out->count > 0 ? &marks_out->marks[marks_out->count - 1] : NULL;
        if (mark.sequence == 0 || (last && (mark.sequence <= last->sequence || mark.steady_ns < last->steady_ns)))
            return ERR_CORRUPT;
        marks_out->marks[marks_out->count++] = mark;
    }
    return ERR_OK;
}
