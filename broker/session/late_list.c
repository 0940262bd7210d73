#include "broker/session/late_list.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/position_list.h"

/* One piece; never empty. All of a piece are above all of the one before it. */
struct late_list {
    struct late_list *next;     /* NULL: it is the last */
    struct late_list *previous; /* of the first: the last, where nearly everything is added */
    struct position_list *sequences;
};

/* Alone: first and last of a list of its own. NULL: memory is short. */
static struct late_list *new_piece(const uint64_t *sequences, uint32_t count)
{
    struct late_list *piece = calloc(1, sizeof *piece);
    if (!piece)
        return NULL;
    if (position_list_push_all(&piece->sequences, sequences, count) != ERR_OK) {
        free(piece);
        return NULL;
    }
    piece->previous = piece;
    return piece;
}

static void insert_piece(struct late_list *first, struct late_list *before, struct late_list *piece)
{
    piece->next = before->next;
    piece->previous = before;
    *(before->next ? &before->next->previous : &first->previous) = piece;
    before->next = piece;
}

static void free_piece(struct late_list *piece)
{
    if (piece)
        position_list_free(piece->sequences);
    free(piece);
}

/* What a piece becomes, and the one behind it if it is too long. */
struct change {
    struct late_list *piece, *behind;
    struct position_list *sequences;
};

static bool change_prepare(struct change *change_out, struct late_list *piece, const uint64_t *sequences, uint32_t count)
{
    uint64_t all[LATE_PIECE + LATE_ADD_MAX], there = 0;
    uint32_t at = 0, all_count = 0;
    struct span bytes = position_list_bytes(piece->sequences);
    for (size_t offset = 0; position_list_next(bytes, &offset, &there) == ERR_OK; all[all_count++] = there)
        while (at < count && sequences[at] < there)
            all[all_count++] = sequences[at++];
    while (at < count)
        all[all_count++] = sequences[at++];
    uint32_t kept = all_count <= LATE_PIECE ? all_count : all_count / 2;
    *change_out = (struct change){.piece = piece};
    if (position_list_push_all(&change_out->sequences, all, kept) != ERR_OK)
        return false;
    if (kept == all_count || (change_out->behind = new_piece(all + kept, all_count - kept)))
        return true;
    position_list_free(change_out->sequences);
    return false;
}

static void change_undo(struct change *change)
{
    position_list_free(change->sequences);
    free_piece(change->behind);
}

static void change_commit(struct late_list *first, struct change *change)
{
    struct late_list *piece = change->piece;
    position_list_free(piece->sequences);
    piece->sequences = change->sequences;
    if (change->behind)
        insert_piece(first, piece, change->behind);
}

/* The place of one that is not before this piece's. */
static bool belongs_here(const struct late_list *piece, uint64_t sequence)
{
    uint64_t next_first;
    return !late_list_first(piece->next, &next_first) || sequence < next_first;
}

/* The piece to which it goes: looked for from the end, because that is where it is. */
static struct late_list *find_piece(struct late_list *first, uint64_t sequence)
{
    struct late_list *piece = first->previous;
    uint64_t lowest;
    while (piece != first && late_list_first(piece, &lowest) && sequence < lowest)
        piece = piece->previous;
    return piece;
}

static bool append(struct late_list *first, const uint64_t *sequences, uint32_t count)
{
    struct late_list *last = first->previous, *piece;
    if (position_list_count(last->sequences) + count <= LATE_PIECE)
        return position_list_push_all(&last->sequences, sequences, count) == ERR_OK;
    if ((piece = new_piece(sequences, count)))
        insert_piece(first, last, piece);
    return piece;
}

bool late_list_add(struct late_list **list, const uint64_t *sequences, uint32_t count)
{
    CHECK(count > 0 && count <= LATE_ADD_MAX);
    if (!*list)
        return (*list = new_piece(sequences, count));
    struct late_list *first = *list;
    if (position_list_last(first->previous->sequences) < sequences[0])
        return append(first, sequences, count);
    struct change changes[LATE_ADD_MAX];
    uint32_t change_count = 0;
    struct late_list *piece = find_piece(first, sequences[0]);
    for (uint32_t at = 0, end; at < count; at = end) {
        while (!belongs_here(piece, sequences[at]))
            piece = piece->next;
        for (end = at + 1; end < count && belongs_here(piece, sequences[end]);)
            end++;
        if (!change_prepare(&changes[change_count], piece, sequences + at, end - at)) {
            while (change_count > 0)
                change_undo(&changes[--change_count]);
            return false;
        }
        change_count++;
    }
    while (change_count > 0)
        change_commit(first, &changes[--change_count]);
    return true;
}

bool late_list_first(const struct late_list *list, uint64_t *sequence_out)
{
    return list && position_list_first(list->sequences, sequence_out);
}

bool late_list_pop(struct late_list **place, uint64_t *sequence_out)
{
    struct late_list *first = *place;
    if (!first)
        return false;
    bool is_there = position_list_pop(&first->sequences, sequence_out);
    CHECK(is_there);
    if (!first->sequences) {
        *place = first->next;
        if (first->next)
            first->next->previous = first->previous;
        free(first);
    }
    return true;
}

bool late_list_is_longer(const struct late_list *list, uint32_t than)
{
    for (uint32_t count; list; list = list->next, than -= count)
        if ((count = position_list_count(list->sequences)) > than)
            return true;
    return false;
}

void late_list_each(const struct late_list *list, void (*visit)(void *arg, uint64_t sequence), void *arg)
{
    for (; list; list = list->next) {
        struct span bytes = position_list_bytes(list->sequences);
        uint64_t sequence = 0;
        for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
            visit(arg, sequence);
    }
}

void late_list_free(struct late_list *list)
{
    while (list) {
        struct late_list *next = list->next;
        free_piece(list);
        list = next;
    }
}
