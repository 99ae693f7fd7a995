/* Placing pages that are new to a RAM file; used by transfer.c, which receives them. */

#ifndef PAGEFERRY_PLACING_H
#define PAGEFERRY_PLACING_H

#include "native.h"
#include "scatter.h"

/* As pf_scatter. From several threads at once. */
int pf_place(const struct pf_placer *placer, struct pf_cursor *cursor, const uint8_t *buffer,
	     uint64_t pages);

#endif
