/* The last line of a process that touches a page of a mapped file which cannot be read, or leaves the map through a damaged page.
 *
 * LMDB reads its file through a map, so what is missing or unreadable there is SIGBUS or SIGSEGV, not an error. The handler writes one line
 * that was made before and holds file and offset, and ends the process with status 1; a fault elsewhere goes to whoever had the signal
 * before. One map at a time. Thread: main sets it up, the handler runs in any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_FAULT_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_FAULT_H

#include <stdint.h>

/* Watch addresses [begin, end), where the file of this path (copied) is mapped. */
void kv_lmdb_fault_catch(const char *path, uintptr_t begin, uintptr_t end);
/* No more, if that is the map that is watched; 0 is fine. */
void kv_lmdb_fault_forget(uintptr_t begin);

#endif
