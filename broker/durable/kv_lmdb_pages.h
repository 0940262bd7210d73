/* LMDB's list of free pages, read without LMDB: from the file, page by page, every offset checked.
 *
 * A file of LMDB may end before its last page, if what lacks is free: pages that a transaction took and gave back are never written. LMDB
 * maps the file and would be killed at the first page that lacks, so who opens it must know before. Returns are plain facts: what cannot be
 * read is not free. Pure but for pread(). Thread: any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_PAGES_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* Do all pages of from <= number < to stand in the list?
 * fd          of the data file.
 * root        of the tree of free pages, as the meta page says; UINT64_MAX: it is empty.
 * page_bytes  512..65536. */
bool kv_lmdb_pages_are_free(int fd, uint64_t root, uint32_t page_bytes, uint64_t from, uint64_t to);

/* May a writer believe the list? Every page of it is in its place and every number in it is one of a page up to last_page, each list
 * descending. LMDB hands out what stands there without a look: over pages in use, when the list is another. */
bool kv_lmdb_pages_is_list(int fd, uint64_t root, uint32_t page_bytes, uint64_t last_page);

/* Note what stands in the list.
 * behind_out  how many of its pages have no mark.
 * marks       of pages 0 .. mark_count - 1; those that are in the list and 0 become `mark`.
 * Returns whether the list is whole; otherwise only a part of it was noted. */
bool kv_lmdb_pages_mark_free(uint64_t *behind_out, uint8_t *marks, uint64_t mark_count, uint8_t mark, int fd, uint64_t root,
                             uint32_t page_bytes, uint64_t last_page);

#endif
