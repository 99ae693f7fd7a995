/* Writing received pages to where they belong in a RAM file; shared by transfer.c and pack.c. */

#ifndef PAGEFERRY_SCATTER_H
#define PAGEFERRY_SCATTER_H

#include "native.h"

/* Where in the runs the next page belongs. */
struct pf_cursor {
	const struct pf_run *items;
	uint64_t done; /* pages of items[0] that are written */
};

/* The next pages that belong together, at most "most" of them; the cursor goes behind them. */
static inline struct pf_run pf_next_part(struct pf_cursor *cursor, uint64_t most)
{
	uint64_t left = cursor->items->count - cursor->done;
	struct pf_run part = {cursor->items->start + cursor->done, left < most ? left : most};

	cursor->done += part.count;
	if (cursor->done == cursor->items->count) {
		cursor->items++;
		cursor->done = 0;
	}
	return part;
}

/* pwrite, to the last byte. */
int pf_write_at(int fd, const uint8_t *buffer, size_t length, uint64_t offset);

/* Writes whole pages, which the runs must have room for. */
int pf_scatter(int ram_fd, uint64_t file_offset, struct pf_cursor *cursor, const uint8_t *buffer,
	       uint64_t pages);

#endif
