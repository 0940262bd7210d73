/* LMDB's list of free pages, read without LMDB (kv_lmdb_page.h): from the file, page by page, every number checked. It is a tree of
 * transaction number u64 -> count u64, so many page numbers u64, descending.
 *
 * A file of LMDB may end before its last page, if what lacks is free: pages that a transaction took and gave back are never written. LMDB
 * maps the file and would be killed at the first page that lacks, so who opens it must know before. And LMDB takes the list's own pages for
 * what they say they are: one that claims to be "dirty" is written to where it is mapped for reading, one of another kind is read as that,
 * and one without nodes ends the process by an assertion, each at the first commit. So here a page has nodes, the flag of its kind and no
 * other, as LMDB writes them. Returns are plain facts: what cannot be read is not free. Pure but for pread(). Thread: any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_FREE_LIST_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_FREE_LIST_H

#include <stdbool.h>
#include <stdint.h>

/* Do all pages of from <= number < to stand in the list?
 * fd          of the data file.
 * root        of the tree of free pages, as the meta page says; KV_LMDB_PAGE_NONE: it is empty.
 * page_bytes  512..65536. */
bool kv_lmdb_free_list_has(int fd, uint64_t root, uint32_t page_bytes, uint64_t from, uint64_t to);

/* May a writer believe the list? Every page of it is in its place and every number in it is one of a page up to last_page, each list
 * descending. LMDB hands out what stands there without a look: over pages in use, when the list is another. */
bool kv_lmdb_free_list_is_sound(int fd, uint64_t root, uint32_t page_bytes, uint64_t last_page);

/* Note what stands in the list.
 * behind_out  how many of its pages have no mark.
 * marks       of pages 0 .. mark_count - 1; those that are in the list and 0 become `mark`.
 * Returns whether the list is whole; otherwise only a part of it was noted. */
bool kv_lmdb_free_list_mark(uint64_t *behind_out, uint8_t *marks, uint64_t mark_count, uint8_t mark, int fd, uint64_t root,
                            uint32_t page_bytes, uint64_t last_page);

#endif
