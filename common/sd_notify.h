/* Readiness for a service manager: the datagram protocol of $NOTIFY_SOCKET, without its library. */
#ifndef TIDEGATE_COMMON_SD_NOTIFY_H
#define TIDEGATE_COMMON_SD_NOTIFY_H

#include "common/err.h"

/* Send e.g. "READY=1\nSTATUS=serving" or "STOPPING=1".
 * Returns 0 when sent or when nobody asked (no NOTIFY_SOCKET), otherwise why not; nobody needs to stop for that. Does not block. Thread:
 * any. */
enum err sd_notify_send(const char *state);

#endif
