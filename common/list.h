/* Intrusive doubly linked list: the links sit in the element, so putting in and taking out allocate nothing and need no search.
 *
 * The head is a node too (a ring); an element that is in no list has both links NULL after list_node_init() or list_remove(). The list owns
 * nothing. One thread at a time.
 *
 *     struct task { struct list_node node; int id; };
 *     struct list_node tasks;  list_init(&tasks);
 *     list_push_back(&tasks, &task->node);
 *     LIST_EACH(node, &tasks) { struct task *task = LIST_ENTRY(node, struct task, node); ... }     // do not remove inside
 *     LIST_EACH_SAFE(node, next, &tasks) { ... }                                                   // may remove `node` */
#ifndef TIDEGATE_COMMON_LIST_H
#define TIDEGATE_COMMON_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"

struct list_node {
    struct list_node *next;
    struct list_node *prev;
};

#define LIST_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))
#define LIST_EACH(name, head) for (struct list_node *name = (head)->next; name != (head); name = name->next)
#define LIST_EACH_SAFE(name, following, head)                                                                                              \
    for (struct list_node *name = (head)->next, *following = name->next; name != (head); name = following, following = name->next)

/* An empty list. */
static inline void list_init(struct list_node *head) { head->next = head->prev = head; }
/* An element that is in no list. */
static inline void list_node_init(struct list_node *node) { node->next = node->prev = NULL; }
static inline bool list_is_empty(const struct list_node *head) { return head->next == head; }
static inline bool list_node_is_linked(const struct list_node *node) { return node->next != NULL; }

/* Put `node`, which is in no list, before `place` (an element or the head). */
static inline void list_insert_before(struct list_node *place, struct list_node *node)
{
    DCHECK(node->next == NULL || node->next == node);
    node->next = place;
    node->prev = place->prev;
    place->prev->next = node;
    place->prev = node;
}
static inline void list_insert_after(struct list_node *place, struct list_node *node) { list_insert_before(place->next, node); }
static inline void list_push_back(struct list_node *head, struct list_node *node) { list_insert_before(head, node); }
static inline void list_push_front(struct list_node *head, struct list_node *node) { list_insert_before(head->next, node); }

/* Take `node` out of its list; afterwards it is in none. */
static inline void list_remove(struct list_node *node)
{
    DCHECK(node->next != NULL);
    node->next->prev = node->prev;
    node->prev->next = node->next;
    node->next = node->prev = NULL;
}

/* The ends; NULL when the list is empty. */
static inline struct list_node *list_first(const struct list_node *head) { return list_is_empty(head) ? NULL : head->next; }
static inline struct list_node *list_last(const struct list_node *head) { return list_is_empty(head) ? NULL : head->prev; }

/* Take the first element out; NULL when the list is empty. */
static inline struct list_node *list_pop_front(struct list_node *head)
{
    struct list_node *node = list_first(head);
    if (node)
        list_remove(node);
    return node;
}

/* Move all of `from` to the end of `head`; `from` is empty afterwards. */
static inline void list_splice_back(struct list_node *head, struct list_node *from)
{
    if (list_is_empty(from))
        return;
    from->next->prev = head->prev;
    head->prev->next = from->next;
    from->prev->next = head;
    head->prev = from->prev;
    list_init(from);
}

/* Elements in the list; walks it. */
static inline size_t list_count(const struct list_node *head)
{
    size_t count = 0;
    for (const struct list_node *node = head->next; node != head; node = node->next)
        count++;
    return count;
}

#endif
