/* Holes, residency and paging calls on a little shmem; nothing here needs swap or privileges. */

#include "check.h"

#include <sys/mman.h>
#include <unistd.h>

#define PAGES 4096
#define MADV_DONTNEED_ADVICE 4

static void test_data_pages_begin_at_the_offset(void)
{
	int fd = memfd_create("pageferry-test", MFD_CLOEXEC);
	struct pf_runs *runs, *punched = make_runs((uint64_t[]){5, 2}, 1);
	struct pf_pageset *set;

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_pageset_create(100, &set));
	CHECK(!pf_data_pages(fd, 10 * PF_PAGE_BYTES, 100, set) && !pf_pageset_any(set));
	for (int page = 8; page < 20; page++)
		CHECK(pwrite(fd, "x", 1, page * PF_PAGE_BYTES) == 1);
	CHECK(pwrite(fd, "x", 1, 109 * PF_PAGE_BYTES) == 1);
	CHECK(pwrite(fd, "x", 1, 110 * PF_PAGE_BYTES) == 1);
	CHECK(!pf_punch(fd, 10 * PF_PAGE_BYTES, punched));
	CHECK(!pf_data_pages(fd, 10 * PF_PAGE_BYTES, 100, set));
	CHECK(!pf_pageset_take(set, 0, 100, 100, 100, &runs));
	CHECK(pf_runs_length(runs) == 3 && pf_runs_pages(runs) == 5 + 3 + 1);
	CHECK(pf_runs_items(runs)[1].start == 7 && pf_runs_items(runs)[2].start == 99);
	pf_runs_destroy(runs);
	pf_runs_destroy(punched);
	pf_pageset_destroy(set);
	close(fd);
}

static void test_resident_pages_are_not_evicted(void)
{
	int fd = memfd_create("pageferry-test", MFD_CLOEXEC);
	struct pf_runs *runs = make_runs((uint64_t[]){0, 700, 900, 1}, 2), *found;
	uint8_t *base;
	uint64_t resident;
	int error;

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_map(fd, 0, (uint64_t)PAGES * PF_PAGE_BYTES, true, &base));
	memset(base, 1, 901 * PF_PAGE_BYTES);
	error = pf_cachestat_swapped(fd, 0, runs, &found);
	if (error != ENOSYS) {
		CHECK(!error && !pf_runs_length(found));
		pf_runs_destroy(found);
		CHECK(!pf_cachestat_resident(fd, 0, runs, &resident) && resident == 701);
	}
	CHECK(!pf_mincore_absent(base, PAGES, runs, &found) && !pf_runs_length(found));
	pf_runs_destroy(found);
	CHECK(pf_mincore_absent(base, 900, runs, &found) == ERANGE);
	CHECK(pf_advise(base, 900, runs, MADV_DONTNEED_ADVICE) == ERANGE);
	CHECK(!pf_advise(base, PAGES, runs, MADV_DONTNEED_ADVICE));
	CHECK(!pf_mincore_absent(base, PAGES, runs, &found) && !pf_runs_length(found));
	pf_runs_destroy(found);
	pf_runs_destroy(runs);
	CHECK(!pf_unmap(base, (uint64_t)PAGES * PF_PAGE_BYTES));
	close(fd);
}

int main(void)
{
	test_data_pages_begin_at_the_offset();
	test_resident_pages_are_not_evicted();
	return 0;
}
