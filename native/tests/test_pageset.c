/* The bitmap against an array of bytes, with random operations and every size around a word. */

#include "check.h"

#define OPERATIONS 400

static void compare(const struct pf_pageset *set, const uint8_t *model, uint64_t pages)
{
	struct pf_runs *runs;
	const struct pf_run *items;
	uint64_t total = 0, counted, page = 0;

	CHECK(!pf_pageset_take(set, 0, pages, pages, pages, &runs));
	items = pf_runs_items(runs);
	for (size_t i = 0; i < pf_runs_length(runs); i++) {
		for (; page < items[i].start; page++)
			CHECK(!model[page]);
		for (; page < items[i].start + items[i].count; page++)
			CHECK(model[page]);
	}
	for (; page < pages; page++)
		CHECK(!model[page]);
	for (page = 0; page < pages; page++) {
		CHECK(pf_pageset_has(set, page) == model[page]);
		total += model[page];
	}
	CHECK(!pf_pageset_has(set, pages));
	CHECK(!pf_pageset_count_range(set, 0, pages, &counted) && counted == total);
	CHECK(pf_pageset_any(set) == (total != 0));
	CHECK(pf_runs_pages(runs) == total);
	pf_runs_destroy(runs);
}

static void test_random_operations(uint64_t pages)
{
	struct pf_pageset *set, *copy;
	uint8_t *model = calloc(pages + 1, 1);
	uint64_t seed = 0x9e3779b97f4a7c15u + pages;

	CHECK(model && !pf_pageset_create(pages, &set));
	for (int i = 0; i < OPERATIONS; i++) {
		uint64_t start = next_random(&seed) % (pages + 1);
		uint64_t count = next_random(&seed) % (pages - start + 1);
		bool add = next_random(&seed) % 2;

		CHECK(!(add ? pf_pageset_add : pf_pageset_discard)(set, start, count));
		memset(model + start, add, count);
		compare(set, model, pages);
	}
	CHECK(!pf_pageset_copy(set, &copy) && pf_pageset_equal(set, copy));
	CHECK(!pf_pageset_discard_all(copy, set) && !pf_pageset_any(copy));
	CHECK(!pf_pageset_add_all(copy, set) && pf_pageset_equal(set, copy));
	pf_pageset_clear(set);
	CHECK(!pf_pageset_keep_all(copy, set) && !pf_pageset_any(copy));
	pf_pageset_destroy(copy);
	pf_pageset_destroy(set);
	free(model);
}

static void test_ranges_beyond_the_end_change_nothing(void)
{
	struct pf_pageset *set, *other;
	struct pf_runs *runs = make_runs((uint64_t[]){1, 2, 99, 2}, 2);
	uint64_t counted = 7;

	CHECK(!pf_pageset_create(100, &set) && !pf_pageset_create(101, &other));
	CHECK(pf_pageset_add(set, 99, 2) == ERANGE);
	CHECK(pf_pageset_add(set, UINT64_MAX, 2) == ERANGE);
	CHECK(pf_pageset_discard(set, 101, 0) == ERANGE);
	CHECK(pf_pageset_add_runs(set, runs) == ERANGE);
	CHECK(pf_pageset_add_all(set, other) == ERANGE);
	CHECK(pf_pageset_keep_all(set, other) == ERANGE);
	CHECK(pf_pageset_discard_all(set, other) == ERANGE);
	CHECK(pf_pageset_count_range(set, 0, 101, &counted) == ERANGE && counted == 7);
	CHECK(!pf_pageset_any(set));
	pf_runs_destroy(runs);
	pf_pageset_destroy(set);
	pf_pageset_destroy(other);
}

static void test_take_keeps_to_its_bounds(void)
{
	struct pf_pageset *set;
	struct pf_runs *runs;

	CHECK(!pf_pageset_create(1000, &set) && !pf_pageset_add(set, 10, 20));
	CHECK(!pf_pageset_add(set, 40, 1) && !pf_pageset_add(set, 500, 500));
	CHECK(!pf_pageset_take(set, 15, 1000, 17, 9, &runs));
	CHECK(pf_runs_length(runs) == 3 && pf_runs_pages(runs) == 17 && pf_runs_end(runs) == 501);
	pf_runs_destroy(runs);
	CHECK(!pf_pageset_take(set, 15, 1000, 900, 2, &runs));
	CHECK(pf_runs_length(runs) == 2 && pf_runs_end(runs) == 41);
	pf_runs_destroy(runs);
	CHECK(!pf_pageset_take(set, 12, 14, 900, 9, &runs));
	CHECK(pf_runs_pages(runs) == 2 && pf_runs_end(runs) == 14);
	pf_runs_destroy(runs);
	CHECK(!pf_pageset_take(set, 5000, 1000, 900, 9, &runs) && !pf_runs_length(runs));
	pf_runs_destroy(runs);
	pf_pageset_destroy(set);
}

/* Runs of 1, 2, ... pages: the long ones stay. What is longer than the count knows is one length. */
static void test_long_runs_are_kept(void)
{
	struct pf_pageset *set;
	struct pf_run run;
	uint64_t pages = 3 * 5000 + 100, page = 0, counted;

	CHECK(!pf_pageset_create(pages, &set));
	for (uint64_t length = 1; length <= 10; length++, page += length)
		CHECK(!pf_pageset_add(set, page, length));
	CHECK(!pf_pageset_keep_long_runs(set, 10));
	CHECK(!pf_pageset_count_range(set, 0, pages, &counted) && counted == 55);
	CHECK(!pf_pageset_keep_long_runs(set, 3));
	CHECK(!pf_pageset_count_range(set, 0, pages, &counted) && counted == 10 + 9 + 8);
	CHECK(!pf_pageset_next(set, 0, &run) && run.count == 8);
	CHECK(!pf_pageset_add(set, 100, 5000) && !pf_pageset_add(set, 5200, 4500));
	CHECK(!pf_pageset_keep_long_runs(set, 2));
	CHECK(!pf_pageset_count_range(set, 0, pages, &counted) && counted == 9500);
	CHECK(!pf_pageset_keep_long_runs(set, 1));
	CHECK(!pf_pageset_any(set));
	CHECK(!pf_pageset_keep_long_runs(set, 0));
	pf_pageset_destroy(set);
}

int main(void)
{
	const uint64_t sizes[] = {0, 1, 2, 63, 64, 65, 127, 128, 129, 200, 1000};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		test_random_operations(sizes[i]);
	test_ranges_beyond_the_end_change_nothing();
	test_take_keeps_to_its_bounds();
	test_long_runs_are_kept();
	return 0;
}
