#include "broker/actor/store_read.h"

#include <stdlib.h>

#include "broker/actor/msg.h"

void store_read_free(struct store_read *read)
{
    for (uint32_t i = 0; read && i < read->count; i++) {
        msg_unref(read->items[i].msg);
        free(read->items[i].ids);
    }
    free(read);
}
