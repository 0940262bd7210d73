/* Apart from the reader itself: askers free answers, and need no database for it. */
#include <stdlib.h>

#include "broker/core/msg.h"
#include "broker/durable/store_reader.h"

void store_read_free(struct store_read *read)
{
    for (uint32_t i = 0; read && i < read->count; i++) {
        msg_unref(read->items[i].msg);
        free(read->items[i].ids);
    }
    free(read);
}
