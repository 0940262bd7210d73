#include "broker/session/inflight.h"

#include <stdlib.h>

#include "broker/session/position_pack.h"
#include "common/check.h"

#define NONE UINT16_MAX
#define CAPACITY_FIRST 8u
#define CAPACITY_MAX 65535u /* indices 0..65534, identifiers 1..65535 */

struct inflight_block {
    uint32_t capacity;
    uint32_t cell_mask;
    uint16_t first, last; /* order of first sending */
    uint16_t free;        /* list by `next` */
    uint16_t unsent;      /* everything before it has been sent on this connection */
    uint16_t looked_at;   /* where floor_of() stood last; NONE = nowhere */
    bool is_ascending;    /* all came by their sequences, which ascend in the order of sending, as nearly always at start */
    uint16_t *cells;      /* identifier -> first entry, by identifier & cell_mask */
    struct inflight_entry entries[];
};

static struct inflight_block *block_new(uint32_t capacity)
{
    uint32_t cell_count = 8;
    while (cell_count < capacity)
        cell_count *= 2;
    size_t entries_size = capacity * sizeof(struct inflight_entry);
    struct inflight_block *block = malloc(sizeof *block + entries_size + cell_count * sizeof(uint16_t));
    if (!block)
        return NULL;
    block->capacity = capacity;
    block->cell_mask = cell_count - 1;
    block->first = block->last = block->unsent = block->looked_at = NONE;
    block->is_ascending = true;
    block->cells = (uint16_t *)(void *)((uint8_t *)block->entries + entries_size);
    for (uint32_t i = 0; i < cell_count; i++)
        block->cells[i] = NONE;
    for (uint32_t i = 0; i < capacity; i++) {
        block->entries[i].state = INFLIGHT_FREE;
        block->entries[i].next = (uint16_t)(i + 1 < capacity ? i + 1 : NONE);
    }
    block->free = 0;
    return block;
}

static uint16_t index_of(const struct inflight_block *block, const struct inflight_entry *entry)
{
    return (uint16_t)(entry - block->entries);
}

uint64_t inflight_sequence(const struct inflight_entry *entry) { return entry->has_msg ? msg_sequence(entry->msg) : entry->sequence; }

/* Put a copy of `source` into the order before the entry of index `before`, NONE: at the end. The block has a free entry. */
static struct inflight_entry *block_insert(struct inflight_block *block, const struct inflight_entry *source, uint16_t before)
{
    uint16_t index = block->free;
    CHECK(index != NONE);
    struct inflight_entry *entry = &block->entries[index];
    block->free = entry->next;
    *entry = *source;
    entry->next = before;
    entry->prev = before != NONE ? block->entries[before].prev : block->last;
    *(entry->prev != NONE ? &block->entries[entry->prev].next : &block->first) = index;
    *(before != NONE ? &block->entries[before].prev : &block->last) = index;
    uint16_t *cell = &block->cells[entry->packet_id & block->cell_mask];
    entry->next_in_cell = *cell;
    *cell = index;
    if (!entry->is_sent && block->unsent == before)
        block->unsent = index;
    /* Nobody asks where those with messages stand: no look into them for each that is sent. */
    block->is_ascending = block->is_ascending && !entry->has_msg &&
                          (entry->prev == NONE || inflight_sequence(&block->entries[entry->prev]) <= entry->sequence) &&
                          (before == NONE || entry->sequence <= inflight_sequence(&block->entries[before]));
    return entry;
}

static struct inflight_entry *block_append(struct inflight_block *block, const struct inflight_entry *source)
{
    return block_insert(block, source, NONE);
}

static bool resize(struct inflight *inflight, uint32_t capacity)
{
    struct inflight_block *old = inflight->block;
    struct inflight_block *block = block_new(capacity < CAPACITY_MAX ? capacity : CAPACITY_MAX);
    if (!block)
        return false;
    if (old)
        for (uint16_t at = old->first; at != NONE; at = old->entries[at].next)
            block_append(block, &old->entries[at]);
    free(old);
    inflight->block = block;
    return true;
}

static bool grow(struct inflight *inflight)
{
    const struct inflight_block *old = inflight->block;
    if (old && old->free != NONE)
        return true;
    if (old && old->capacity >= CAPACITY_MAX)
        return false;
    return resize(inflight, old && old->capacity * 2 > CAPACITY_FIRST ? old->capacity * 2 : CAPACITY_FIRST);
}

/* The message goes, its sequence stays. */
static void drop_msg(struct inflight_entry *entry)
{
    if (!entry->has_msg)
        return;
    struct msg *msg = entry->msg;
    entry->sequence = inflight_sequence(entry);
    entry->has_msg = false;
    msg_unref(msg);
}

/* --- packed ------------------------------------------------------------------------------------------------------------------------- */

/* The sequences in the order of sending, then groups: of entries, one behind the other, whose identifiers ascend by one and which are
 * alike besides. A group is two varints: of the difference of its first identifier to the one that would be expected, with what they have
 * in common in the low bits, and of how many there are. */
struct inflight_packed {
    uint64_t sequence_max; /* of all, 0 = none has one: asked once for each message that the session wants at start */
    uint32_t size;         /* bytes */
    uint8_t bytes[];
};

#define PACKED_STATE_MASK 3u
#define PACKED_IS_WANTED 4u
#define PACKED_IS_DUP 8u
#define PACKED_FLAG_BITS 4

struct group {
    uint16_t last_id; /* before it, or of the one before the next */
    uint8_t flags;
    uint32_t count;
};

/* A walk over all entries, packed or not. */
struct walk {
    const struct inflight *inflight;
    uint16_t at;                      /* not packed: the next entry */
    struct position_unpack sequences; /* packed: of the next */
    size_t offset;                    /* packed: of the next group */
    struct group group;               /* packed: what is left of it */
    struct inflight_entry it;         /* a copy; packed: as it will be, without a meta */
};

static struct walk walk_of(const struct inflight *inflight)
{
    struct walk walk = {.inflight = inflight, .at = !inflight->is_packed && inflight->block ? inflight->block->first : NONE};
    if (!inflight->is_packed)
        return walk;
    const struct inflight_packed *packed = inflight->packed;
    walk.sequences = position_unpack_of(span_of(packed->bytes, packed->size), packed->sequence_max, inflight->count);
    walk.offset = walk.sequences.size;
    return walk;
}

static void walk_read_group(struct walk *walk)
{
    const struct inflight_packed *packed = walk->inflight->packed;
    uint64_t words[2];
    for (int i = 0; i < 2; i++) {
        size_t used = varint_get(&words[i], packed->bytes + walk->offset, packed->bytes + packed->size);
        CHECK(used > 0);
        walk->offset += used;
    }
    walk->group.last_id = (uint16_t)(walk->group.last_id + zigzag_decode(words[0] >> PACKED_FLAG_BITS));
    walk->group.flags = words[0] & ((1u << PACKED_FLAG_BITS) - 1);
    walk->group.count = (uint32_t)words[1];
}

static bool walk_next(struct walk *walk)
{
    if (!walk->inflight->is_packed) {
        if (walk->at == NONE)
            return false;
        walk->it = walk->inflight->block->entries[walk->at];
        walk->at = walk->it.next;
        return true;
    }
    uint64_t sequence;
    if (!position_unpack_next(&walk->sequences, &sequence))
        return false;
    struct group *group = &walk->group;
    if (group->count == 0)
        walk_read_group(walk);
    CHECK(group->count > 0);
    group->count--;
    group->last_id++;
    walk->it = (struct inflight_entry){.sequence = sequence,
                                       .packet_id = group->last_id,
                                       .state = group->flags & PACKED_STATE_MASK,
                                       .is_wanted = (group->flags & PACKED_IS_WANTED) != 0,
                                       .is_dup = (group->flags & PACKED_IS_DUP) != 0};
    return true;
}

static uint8_t flags_of(const struct inflight_entry *entry)
{
    return (uint8_t)(entry->state | (entry->is_wanted ? PACKED_IS_WANTED : 0) | (entry->is_dup || entry->is_sent ? PACKED_IS_DUP : 0));
}

/* The groups, into `out` unless that is NULL; returns the bytes. */
static size_t pack_groups(const struct inflight *inflight, uint8_t *out)
{
    uint8_t one[VARINT_SIZE_MAX];
    struct group group = {0};
    size_t size = 0;
    for (struct walk walk = walk_of(inflight), ahead; walk_next(&walk);) {
        int16_t difference = (int16_t)(uint16_t)(walk.it.packet_id - group.last_id - 1);
        group = (struct group){.last_id = walk.it.packet_id, .flags = flags_of(&walk.it), .count = 1};
        for (ahead = walk; walk_next(&ahead) && flags_of(&ahead.it) == group.flags && ahead.it.packet_id == (uint16_t)(group.last_id + 1);
             group.count++, group.last_id++)
            walk = ahead;
        size += varint_put(out ? out + size : one, zigzag_encode(difference) << PACKED_FLAG_BITS | group.flags);
        size += varint_put(out ? out + size : one, group.count);
    }
    return size;
}

static struct inflight_packed *pack_all(const struct inflight *inflight, uint64_t *sequences)
{
    uint32_t count = 0;
    for (struct walk walk = walk_of(inflight); walk_next(&walk);) {
        if (walk.it.has_msg || walk.it.pending > 0)
            return NULL;
        sequences[count++] = walk.it.sequence;
    }
    uint64_t max = inflight_sequence_max(inflight);
    size_t sequences_size = position_pack(NULL, max, sequences, count), size = sequences_size + pack_groups(inflight, NULL);
    struct inflight_packed *packed = malloc(offsetof(struct inflight_packed, bytes) + size);
    if (!packed)
        return NULL;
    packed->sequence_max = max;
    packed->size = (uint32_t)size;
    position_pack(packed->bytes, max, sequences, count);
    pack_groups(inflight, packed->bytes + sequences_size);
    return packed;
}

void inflight_pack(struct inflight *inflight)
{
    if (inflight->is_packed || inflight->count == 0)
        return;
    uint64_t few[64], *sequences = inflight->count <= 64 ? few : malloc(inflight->count * sizeof *sequences);
    struct inflight_packed *packed = sequences ? pack_all(inflight, sequences) : NULL;
    if (sequences != few)
        free(sequences);
    if (!packed)
        return;
    free(inflight->block);
    inflight->packed = packed;
    inflight->is_packed = true;
}

bool inflight_unpack(struct inflight *inflight)
{
    if (!inflight->is_packed)
        return true;
    struct inflight_block *block = block_new(inflight->count > CAPACITY_FIRST ? inflight->count : CAPACITY_FIRST);
    if (!block)
        return false;
    for (struct walk walk = walk_of(inflight); walk_next(&walk);)
        block_append(block, &walk.it);
    free(inflight->packed);
    inflight->block = block;
    inflight->is_packed = false;
    return true;
}

/* --- all of it ---------------------------------------------------------------------------------------------------------------------- */

void inflight_deinit(struct inflight *inflight)
{
    if (inflight->is_packed)
        free(inflight->packed);
    else if (inflight->block)
        for (uint16_t at = inflight->block->first; at != NONE; at = inflight->block->entries[at].next)
            drop_msg(&inflight->block->entries[at]);
    if (!inflight->is_packed)
        free(inflight->block);
    *inflight = (struct inflight){0};
}

static struct inflight_entry *block_find(struct inflight_block *block, uint16_t packet_id)
{
    for (uint16_t at = block->cells[packet_id & block->cell_mask]; at != NONE; at = block->entries[at].next_in_cell)
        if (block->entries[at].packet_id == packet_id)
            return &block->entries[at];
    return NULL;
}

/* last_id becomes one that is free. Ends: fewer than 65,535 are in use. */
static void draw_id(struct inflight *inflight)
{
    do
        inflight->last_id++;
    while (inflight->last_id == 0 || block_find(inflight->block, inflight->last_id));
}

struct inflight_entry *inflight_add(struct inflight *inflight, struct msg *msg, uint32_t meta, uint8_t qos)
{
    CHECK(qos == 1 || qos == 2);
    if (inflight->count == CAPACITY_MAX)
        return NULL;
    if (!grow(inflight))
        return NULL;
    draw_id(inflight);
    inflight->count++;
    return block_append(inflight->block, &(struct inflight_entry){.msg = msg,
                                                                  .meta = meta,
                                                                  .packet_id = inflight->last_id,
                                                                  .state = qos == 1 ? INFLIGHT_PUBLISH_1 : INFLIGHT_PUBLISH_2,
                                                                  .has_msg = true});
}

bool inflight_restore(struct inflight *inflight, uint64_t sequence, uint16_t packet_id, bool is_received)
{
    if (packet_id == 0 || inflight->count == CAPACITY_MAX || !grow(inflight) || block_find(inflight->block, packet_id))
        return false;
    inflight->count++;
    inflight->last_id = packet_id;
    block_append(inflight->block, &(struct inflight_entry){.sequence = sequence,
                                                           .packet_id = packet_id,
                                                           /* Without a name it cannot be read; whoever has it not answers PUBREL alike. */
                                                           .state = is_received || sequence == 0 ? INFLIGHT_PUBREL : INFLIGHT_PUBLISH_2,
                                                           .is_wanted = sequence != 0,
                                                           .is_dup = true});
    return true;
}

/* The first that is not below this sequence, in a block that ascends. For sequences that ascend, too: O(1), all in all. */
static uint16_t floor_of(struct inflight_block *block, uint64_t sequence)
{
    uint16_t at = block->looked_at != NONE ? block->looked_at : block->first;
    while (at != NONE && inflight_sequence(&block->entries[at]) < sequence)
        at = block->entries[at].next;
    for (uint16_t prev = at != NONE ? block->entries[at].prev : block->last;
         prev != NONE && inflight_sequence(&block->entries[prev]) >= sequence; prev = block->entries[at].prev)
        at = prev;
    block->looked_at = at;
    return at;
}

/* The first above it, in a block that ascends. */
static uint16_t find_later(struct inflight_block *block, uint64_t sequence)
{
    uint16_t at = floor_of(block, sequence);
    while (at != NONE && inflight_sequence(&block->entries[at]) <= sequence)
        at = block->entries[at].next;
    return at;
}

bool inflight_has_later(const struct inflight *inflight, uint64_t sequence)
{
    return inflight->count < CAPACITY_MAX && inflight_sequence_max(inflight) > sequence;
}

struct place {
    uint64_t sequence;
    uint16_t index, at; /* of the entry; in the order as it was */
};

static int place_compare(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->sequence != y->sequence)
        return x->sequence < y->sequence ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

/* The order becomes that of the sequences; of entries without a message, before the first is sent. False: memory is short. */
static bool sort(struct inflight *inflight)
{
    struct inflight_block *block = inflight->block;
    if (block->is_ascending)
        return true;
    struct place *places = malloc(inflight->count * sizeof *places);
    if (!places)
        return false;
    uint16_t count = 0;
    for (uint16_t at = block->first; at != NONE; at = block->entries[at].next, count++) {
        CHECK(!block->entries[at].has_msg && !block->entries[at].is_sent);
        places[count] = (struct place){.sequence = block->entries[at].sequence, .index = at, .at = count};
    }
    CHECK(count == inflight->count);
    qsort(places, count, sizeof *places, place_compare);
    for (uint16_t i = 0; i < count; i++) {
        struct inflight_entry *entry = &block->entries[places[i].index];
        entry->prev = i > 0 ? places[i - 1].index : NONE;
        entry->next = i + 1 < count ? places[i + 1].index : NONE;
    }
    block->first = block->unsent = places[0].index;
    block->last = places[count - 1].index;
    block->looked_at = NONE;
    block->is_ascending = true;
    free(places);
    return true;
}

bool inflight_restore_before_later(struct inflight *inflight, uint64_t sequence)
{
    CHECK(!inflight->is_packed);
    CHECK(inflight_has_later(inflight, sequence));
    if (!grow(inflight) || !sort(inflight))
        return false;
    draw_id(inflight);
    inflight->count++;
    uint16_t before = find_later(inflight->block, sequence);
    CHECK(!inflight->block->entries[before].is_sent);
    block_insert(
        inflight->block,
        &(struct inflight_entry){.sequence = sequence, .packet_id = inflight->last_id, .state = INFLIGHT_PUBLISH_1, .is_wanted = true},
        before);
    return true;
}

struct inflight_entry *inflight_find_sequence(struct inflight *inflight, uint64_t sequence)
{
    struct inflight_block *block = inflight->block;
    for (uint16_t at = block ? block->first : NONE; at != NONE; at = block->entries[at].next)
        if (inflight_sequence(&block->entries[at]) == sequence)
            return &block->entries[at];
    return NULL;
}

bool inflight_has_sequence(const struct inflight *inflight, uint64_t sequence)
{
    struct inflight_block *block = inflight->is_packed ? NULL : inflight->block;
    if (block && block->is_ascending) {
        uint16_t at = floor_of(block, sequence);
        return at != NONE && inflight_sequence(&block->entries[at]) == sequence;
    }
    struct walk walk = walk_of(inflight);
    while (walk_next(&walk))
        if (inflight_sequence(&walk.it) == sequence)
            return true;
    return false;
}

uint64_t inflight_sequence_max(const struct inflight *inflight)
{
    uint64_t max = 0;
    if (inflight->is_packed)
        return inflight->packed->sequence_max;
    const struct inflight_block *block = inflight->block;
    if (block && block->is_ascending)
        return block->last != NONE ? inflight_sequence(&block->entries[block->last]) : 0;
    for (struct walk walk = walk_of(inflight); walk_next(&walk);) {
        uint64_t sequence = inflight_sequence(&walk.it);
        max = sequence > max ? sequence : max;
    }
    return max;
}

struct inflight_entry *inflight_find(struct inflight *inflight, uint16_t packet_id)
{
    return inflight->block ? block_find(inflight->block, packet_id) : NULL;
}

void inflight_to_pubrel(struct inflight *inflight, struct inflight_entry *entry)
{
    (void)inflight;
    CHECK(entry->state == INFLIGHT_PUBLISH_2);
    entry->state = INFLIGHT_PUBREL;
    drop_msg(entry);
}

void inflight_remove(struct inflight *inflight, struct inflight_entry *entry)
{
    struct inflight_block *block = inflight->block;
    uint16_t index = index_of(block, entry);
    CHECK(entry->state != INFLIGHT_FREE);
    CHECK(inflight->count > 0);
    uint16_t *link = &block->cells[entry->packet_id & block->cell_mask];
    while (*link != index)
        link = &block->entries[*link].next_in_cell;
    *link = entry->next_in_cell;
    if (block->unsent == index)
        block->unsent = entry->next;
    block->looked_at = NONE;
    if (entry->prev != NONE)
        block->entries[entry->prev].next = entry->next;
    else
        block->first = entry->next;
    if (entry->next != NONE) {
        struct inflight_entry *next = &block->entries[entry->next];
        next->prev = entry->prev;
        if (next->has_msg)
            __builtin_prefetch(next->msg, 1); /* most often acknowledged next, and out of the caches since it was sent */
    } else {
        block->last = entry->prev;
    }
    drop_msg(entry);
    entry->state = INFLIGHT_FREE;
    entry->next = block->free;
    block->free = index;
    inflight->count--;
}

void inflight_restart(struct inflight *inflight)
{
    struct inflight_block *block = inflight->block;
    if (!block)
        return;
    for (uint16_t at = block->first; at != NONE; at = block->entries[at].next) {
        block->entries[at].is_dup |= block->entries[at].is_sent;
        block->entries[at].is_sent = false;
        block->entries[at].holds_quota = false;
    }
    block->unsent = block->first;
}

struct inflight_entry *inflight_next_unsent(struct inflight *inflight)
{
    struct inflight_block *block = inflight->block;
    if (!block || block->unsent == NONE)
        return NULL;
    return &block->entries[block->unsent];
}

void inflight_mark_sent(struct inflight *inflight, struct inflight_entry *entry)
{
    CHECK(!entry->is_sent);
    CHECK(inflight->block->unsent == index_of(inflight->block, entry));
    entry->is_sent = true;
    inflight->block->unsent = entry->next;
}

bool inflight_let_go(struct inflight *inflight, uint64_t checkpoint)
{
    if (inflight->is_packed)
        return false;
    struct inflight_block *block = inflight->block;
    bool is_left = false;
    for (uint16_t at = block ? block->first : NONE; at != NONE; at = block->entries[at].next) {
        struct inflight_entry *entry = &block->entries[at];
        if (entry->has_msg && entry->is_wanted && inflight_sequence(entry) < checkpoint)
            drop_msg(entry);
        is_left |= (entry->has_msg && entry->is_wanted) || entry->pending > 0;
    }
    if (block && inflight->count > 0 && inflight->count < block->capacity)
        (void)resize(inflight, inflight->count); /* or it stays larger */
    return is_left;
}

uint32_t inflight_missing(const struct inflight *inflight, uint64_t *sequences_out, uint32_t max)
{
    const struct inflight_block *block = inflight->block;
    uint32_t count = 0;
    for (uint16_t at = block ? block->unsent : NONE; at != NONE && count < max; at = block->entries[at].next)
        if (!block->entries[at].has_msg && block->entries[at].state != INFLIGHT_PUBREL)
            sequences_out[count++] = block->entries[at].sequence;
    return count;
}

void inflight_give(struct inflight_entry *entry, struct msg *msg, uint32_t meta)
{
    CHECK(!entry->has_msg);
    CHECK(entry->state == INFLIGHT_PUBLISH_1 || entry->state == INFLIGHT_PUBLISH_2);
    entry->msg = msg;
    entry->has_msg = true;
    entry->meta = meta;
}

void inflight_each_position(const struct inflight *inflight, void (*visit)(void *arg, uint64_t sequence), void *arg)
{
    for (struct walk walk = walk_of(inflight); walk_next(&walk);)
        if (walk.it.is_wanted)
            visit(arg, inflight_sequence(&walk.it));
}

void inflight_trim(struct inflight *inflight)
{
    if (inflight->count > 0)
        return;
    free(inflight->block);
    inflight->block = NULL;
}
