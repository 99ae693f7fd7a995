/* What lies in swap, without mapping or faulting: SEEK_DATA, cachestat(2), mincore(2). */

#include "native.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* cachestat(2): commit cf264e1329fb, Linux 6.5; newer than Debian 12's headers. */
#define SYS_CACHESTAT 451

struct cachestat_range {
	uint64_t off;
	uint64_t len;
};

struct cachestat {
	uint64_t nr_cache;
	uint64_t nr_dirty;
	uint64_t nr_writeback;
	uint64_t nr_evicted;
	uint64_t nr_recently_evicted;
};

/*
 * Where bisection starts. One call costs 0.2 to 0.6 us and some 30 ns for each page, so starting
 * at the whole block would walk every page once per level, twenty times on 4 GiB.
 */
#define CHUNK_PAGES 512

static int look(int fd, uint64_t file_offset, uint64_t start, uint64_t count, struct cachestat *out)
{
	struct cachestat_range range = {
		.off = file_offset + start * PF_PAGE_BYTES,
		.len = count * PF_PAGE_BYTES,
	};
	struct cachestat stat;

	if (syscall(SYS_CACHESTAT, fd, &range, &stat, 0))
		return errno;
	*out = stat;
	return 0;
}

/* Appends the data pages among the "count" from "start" on. */
static int data_range(int fd, uint64_t file_offset, uint64_t start, uint64_t count,
		      struct pf_pageset *out)
{
	off_t limit = (off_t)(file_offset + (start + count) * PF_PAGE_BYTES);
	off_t data = (off_t)(file_offset + start * PF_PAGE_BYTES), hole;
	uint64_t first, last;
	int error;

	while (data < limit) {
		data = lseek(fd, data, SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : errno;
		if (data >= limit)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			/* Punched or truncated since: nothing was allocated behind it. */
			return errno == ENXIO ? 0 : errno;
		if (hole > limit)
			hole = limit;
		first = ((uint64_t)data - file_offset) / PF_PAGE_BYTES;
		last = ((uint64_t)hole - file_offset + PF_PAGE_BYTES - 1) / PF_PAGE_BYTES;
		error = pf_pageset_add(out, first, last - first);
		if (error)
			return error;
		data = hole;
	}
	return 0;
}

int pf_data_pages(int fd, uint64_t file_offset, uint64_t pages, struct pf_pageset *out)
{
	return data_range(fd, file_offset, 0, pages, out);
}

int pf_data_among(int fd, uint64_t file_offset, const struct pf_pageset *within,
		  struct pf_pageset *out)
{
	struct pf_run run = { 0 };
	int error;

	while (!pf_pageset_next(within, run.start + run.count, &run)) {
		error = data_range(fd, file_offset, run.start, run.count, out);
		if (error)
			return error;
	}
	return 0;
}

/*
 * Appends the swapped pages of one range. A range that is all in, or all out, costs one call.
 * "evicted" counts swap entries of shmem, those whose page is still in the swap cache too: what a
 * fault would have to bring back into the page cache.
 */
static int bisect(int fd, uint64_t file_offset, uint64_t start, uint64_t count,
		  struct pf_runs *out)
{
	struct cachestat stat;
	int error = look(fd, file_offset, start, count, &stat);

	if (error)
		return error;
	if (!stat.nr_evicted)
		return 0;
	if (stat.nr_evicted >= count)
		return pf_runs_append(out, start, count);
	if (count == 1)
		return 0;
	error = bisect(fd, file_offset, start, count / 2, out);
	if (error)
		return error;
	return bisect(fd, file_offset, start + count / 2, count - count / 2, out);
}

static int append_swapped(int fd, uint64_t file_offset, const struct pf_runs *runs,
			  struct pf_runs *out)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);
	int error;

	for (size_t i = 0; i < length; i++) {
		uint64_t end = items[i].start + items[i].count;

		for (uint64_t page = items[i].start; page < end; page += CHUNK_PAGES) {
			uint64_t count = end - page < CHUNK_PAGES ? end - page : CHUNK_PAGES;

			error = bisect(fd, file_offset, page, count, out);
			if (error)
				return error;
		}
	}
	return 0;
}

int pf_cachestat_swapped(int fd, uint64_t file_offset, const struct pf_runs *runs,
			 struct pf_runs **out)
{
	struct pf_runs *swapped;
	int error = pf_runs_create(&swapped);

	if (error)
		return error;
	error = append_swapped(fd, file_offset, runs, swapped);
	if (error) {
		pf_runs_destroy(swapped);
		return error;
	}
	*out = swapped;
	return 0;
}

int pf_cachestat_resident(int fd, uint64_t file_offset, const struct pf_runs *runs,
			  uint64_t *out)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);
	uint64_t total = 0;

	for (size_t i = 0; i < length; i++) {
		struct cachestat stat;
		int error = look(fd, file_offset, items[i].start, items[i].count, &stat);

		if (error)
			return error;
		total += stat.nr_cache;
	}
	*out = total;
	return 0;
}

static int append_absent(uint8_t *base, uint64_t start, uint64_t count, struct pf_runs *out)
{
	unsigned char in_core[CHUNK_PAGES];

	while (count) {
		uint64_t part = count < CHUNK_PAGES ? count : CHUNK_PAGES;
		int error;

		if (mincore(base + start * PF_PAGE_BYTES, part * PF_PAGE_BYTES, in_core))
			return errno;
		for (uint64_t i = 0; i < part; i++) {
			if (in_core[i] & 1)
				continue;
			error = pf_runs_append(out, start + i, 1);
			if (error)
				return error;
		}
		start += part;
		count -= part;
	}
	return 0;
}

int pf_mincore_absent(uint8_t *base, uint64_t pages, const struct pf_runs *runs,
		      struct pf_runs **out)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);
	struct pf_runs *absent;
	int error;

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	error = pf_runs_create(&absent);
	if (error)
		return error;
	for (size_t i = 0; i < length && !error; i++)
		error = append_absent(base, items[i].start, items[i].count, absent);
	if (error) {
		pf_runs_destroy(absent);
		return error;
	}
	*out = absent;
	return 0;
}

int pf_count_resident(uint8_t *base, uint64_t pages, int fd, uint64_t file_offset,
		      const struct pf_runs *runs, uint64_t *out)
{
	struct pf_runs *absent;
	int error = pf_cachestat_resident(fd, file_offset, runs, out);

	if (error != ENOSYS && error != EPERM)
		return error;
	error = pf_mincore_absent(base, pages, runs, &absent);
	if (error)
		return error;
	*out = pf_runs_pages(runs) - pf_runs_pages(absent);
	pf_runs_destroy(absent);
	return 0;
}
