/* Zero detection: each implementation sees each single byte of a page. */

#include "check.h"

static void test_every_byte_is_seen(int level)
{
	uint8_t *page = aligned_alloc(PF_PAGE_BYTES, PF_PAGE_BYTES);

	CHECK(page);
	memset(page, 0, PF_PAGE_BYTES);
	CHECK(pf_page_is_zero(page, level));
	for (size_t i = 0; i < PF_PAGE_BYTES; i++) {
		for (int bit = 0; bit < 8; bit++) {
			page[i] = (uint8_t)(1 << bit);
			CHECK(!pf_page_is_zero(page, level));
		}
		page[i] = 0;
	}
	free(page);
}

static void test_split(int level)
{
	uint8_t *base = aligned_alloc(PF_PAGE_BYTES, 64 * PF_PAGE_BYTES);
	struct pf_runs *runs = make_runs((uint64_t[]){3, 10, 20, 44}, 2), *nonzero, *zero;
	uint64_t expected = 0;

	CHECK(base);
	memset(base, 0, 64 * PF_PAGE_BYTES);
	for (uint64_t page = 0; page < 64; page += 3) {
		base[page * PF_PAGE_BYTES + page] = 1;
		expected += page && ((page >= 3 && page < 13) || page >= 20);
	}
	base[2 * PF_PAGE_BYTES] = 1; /* not among the runs */
	CHECK(!pf_split_zero(base, 64, runs, level, &nonzero, &zero));
	CHECK(pf_runs_pages(nonzero) == expected);
	CHECK(pf_runs_pages(nonzero) + pf_runs_pages(zero) == pf_runs_pages(runs));
	pf_runs_destroy(nonzero);
	pf_runs_destroy(zero);
	CHECK(pf_split_zero(base, 63, runs, level, &nonzero, &zero) == ERANGE);
	pf_runs_destroy(runs);
	free(base);
}

int main(void)
{
	for (int level = 0; level <= pf_zero_best_level(); level++) {
		test_every_byte_is_seen(level);
		test_split(level);
	}
	return 0;
}
