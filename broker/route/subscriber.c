#include "broker/route/subscriber.h"

#include <stdlib.h>

void match_list_deinit(struct match_list *list)
{
    free(list->matches);
    free(list->scratch);
    match_list_init(list);
}

void match_list_trim(struct match_list *list, size_t capacity_max)
{
    if (list->capacity > capacity_max || list->scratch_capacity > capacity_max)
        match_list_deinit(list);
}

bool match_list_grow(struct match_list *list, size_t more)
{
    size_t capacity = list->capacity < 16 ? 16 : list->capacity;
    while (capacity - list->count < more)
        capacity *= 2;
    struct subscriber *matches = realloc(list->matches, capacity * sizeof *matches);
    if (matches == NULL)
        return false;
    list->matches = matches;
    list->capacity = capacity;
    return true;
}
