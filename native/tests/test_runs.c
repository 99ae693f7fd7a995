/* Runs: the wire form that a peer sends, subtraction and cutting. */

#include "check.h"

static void test_gaps_come_back_as_they_went(void)
{
	struct pf_runs *runs = make_runs((uint64_t[]){0, 1, 5, 3, 100, 900}, 3), *again;
	uint64_t flat[6];

	pf_runs_to_gaps(runs, flat);
	CHECK(!memcmp(flat, (uint64_t[]){0, 1, 4, 3, 92, 900}, sizeof(flat)));
	CHECK(!pf_runs_from_gaps(flat, 6, 1000, &again));
	CHECK(pf_runs_length(again) == 3 && pf_runs_pages(again) == 904);
	CHECK(pf_runs_end(again) == 1000);
	pf_runs_destroy(again);
	CHECK(pf_runs_from_gaps(flat, 6, 999, &again) == ERANGE);
	pf_runs_destroy(runs);
}

static void refuse(const uint64_t *flat, size_t values)
{
	struct pf_runs *untouched = (void *)-1, *out = untouched;

	CHECK(pf_runs_from_gaps(flat, values, 1000, &out));
	CHECK(out == untouched);
}

static void test_hostile_gaps_are_refused(void)
{
	refuse((uint64_t[]){1}, 1);
	refuse((uint64_t[]){0, 0}, 2);
	refuse((uint64_t[]){0, 1001}, 2);
	refuse((uint64_t[]){1000, 1}, 2);
	refuse((uint64_t[]){UINT64_MAX, 1}, 2);
	refuse((uint64_t[]){1, UINT64_MAX}, 2);
	refuse((uint64_t[]){5, 5, UINT64_MAX - 9, 3}, 4);
	refuse((uint64_t[]){5, 5, UINT64_MAX - 9, 12}, 4);
	refuse((uint64_t[]){5, 5, 0, 0}, 4);
}

static void test_appending_backwards_is_refused(void)
{
	struct pf_runs *runs = make_runs((uint64_t[]){5, 5}, 1);

	CHECK(pf_runs_append(runs, 9, 1) == EINVAL);
	CHECK(pf_runs_append(runs, 12, 0) == EINVAL);
	CHECK(pf_runs_append(runs, 12, UINT64_MAX) == EINVAL);
	CHECK(!pf_runs_append(runs, 10, 2) && pf_runs_length(runs) == 1);
	CHECK(pf_runs_pages(runs) == 7);
	pf_runs_destroy(runs);
}

/* All subsets of eight pages against all subsets of eight pages. */
static struct pf_runs *runs_of_bits(unsigned bits)
{
	struct pf_runs *runs;

	CHECK(!pf_runs_create(&runs));
	for (unsigned page = 0; page < 8; page++)
		if (bits >> page & 1)
			CHECK(!pf_runs_append(runs, page, 1));
	return runs;
}

static unsigned bits_of_runs(const struct pf_runs *runs)
{
	unsigned bits = 0;

	for (size_t i = 0; i < pf_runs_length(runs); i++)
		for (uint64_t n = 0; n < pf_runs_items(runs)[i].count; n++)
			bits |= 1u << (pf_runs_items(runs)[i].start + n);
	return bits;
}

static void test_minus_exhaustively(void)
{
	for (unsigned left = 0; left < 256; left++) {
		for (unsigned right = 0; right < 256; right++) {
			struct pf_runs *a = runs_of_bits(left), *b = runs_of_bits(right), *c;

			CHECK(!pf_runs_minus(a, b, &c));
			CHECK(bits_of_runs(c) == (left & ~right));
			pf_runs_destroy(a);
			pf_runs_destroy(b);
			pf_runs_destroy(c);
		}
	}
}

static void test_cuts_make_up_the_whole(void)
{
	for (unsigned bits = 0; bits < 256; bits++) {
		for (uint64_t size = 1; size <= 8; size++) {
			struct pf_runs *whole = runs_of_bits(bits), *part;
			unsigned seen = 0;

			for (uint64_t first = 0; first < 8; first += size) {
				CHECK(!pf_runs_cut(whole, first, size, &part));
				CHECK(pf_runs_pages(part) <= size);
				CHECK(!(seen & bits_of_runs(part)));
				seen |= bits_of_runs(part);
				pf_runs_destroy(part);
			}
			CHECK(seen == bits);
			pf_runs_destroy(whole);
		}
	}
}

static void test_from_pages_sorts(void)
{
	uint64_t pages[] = {7, 1, 3, 2, 9};
	struct pf_runs *runs;

	CHECK(!pf_runs_from_pages(pages, 5, &runs));
	CHECK(pf_runs_length(runs) == 3 && pf_runs_pages(runs) == 5);
	pf_runs_destroy(runs);
	CHECK(pf_runs_from_pages((uint64_t[]){4, 4}, 2, &runs) == EINVAL);
}

int main(void)
{
	test_gaps_come_back_as_they_went();
	test_hostile_gaps_are_refused();
	test_appending_backwards_is_refused();
	test_minus_exhaustively();
	test_cuts_make_up_the_whole();
	test_from_pages_sorts();
	return 0;
}
