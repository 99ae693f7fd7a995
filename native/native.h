/* What all C files of the extension share. The interface itself, and its conventions: api.h. */

#ifndef PAGEFERRY_NATIVE_H
#define PAGEFERRY_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "api.h"

#define PF_PAGE_BYTES 4096u
#define PF_PAGE_SHIFT 12

/* True when every run ends at or before "pages". */
static inline bool pf_runs_fit(const struct pf_runs *runs, uint64_t pages)
{
	return pf_runs_end(runs) <= pages;
}

/* True when all 4096 bytes at "page" are zero; "level" as in pf_zero_best_level. */
bool pf_page_is_zero(const uint8_t *page, int level);

#endif
