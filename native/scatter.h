/* Writing received pages to where they belong in a RAM file; shared by transfer.c and pack.c. */

#ifndef PAGEFERRY_SCATTER_H
#define PAGEFERRY_SCATTER_H

#include "native.h"

/* Where in the runs the next page belongs. */
struct pf_cursor {
	const struct pf_run *items;
	uint64_t done; /* pages of items[0] that are written */
};

/* Writes whole pages, which the runs must have room for. */
int pf_scatter(int ram_fd, uint64_t file_offset, struct pf_cursor *cursor, const uint8_t *buffer,
	       uint64_t pages);

#endif
