/*
 * A set of pages as a bitmap: one bit a page, 32 KiB per GiB of guest RAM.
 *
 * Bits past the last page are zero always, so that whole words can be counted and compared.
 */

#include "native.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct pf_pageset {
	uint64_t pages;
	uint64_t words;
	uint64_t *bits;
};

#define WORD_BITS 64

/* The bits of one word from "low" (inclusive) to "high" (exclusive, 1..64). */
static uint64_t mask_of(unsigned low, unsigned high)
{
	uint64_t below_high = high == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << high) - 1;

	return below_high & ~((UINT64_C(1) << low) - 1);
}

static int range_check(const struct pf_pageset *set, uint64_t start, uint64_t count)
{
	uint64_t end;

	if (__builtin_add_overflow(start, count, &end) || end > set->pages)
		return ERANGE;
	return 0;
}

int pf_pageset_create(uint64_t pages, struct pf_pageset **out)
{
	struct pf_pageset *set = calloc(1, sizeof(*set));

	if (!set)
		return ENOMEM;
	set->pages = pages;
	set->words = pages / WORD_BITS + (pages % WORD_BITS != 0);
	set->bits = calloc(set->words ? set->words : 1, sizeof(*set->bits));
	if (!set->bits) {
		free(set);
		return ENOMEM;
	}
	*out = set;
	return 0;
}

void pf_pageset_destroy(struct pf_pageset *set)
{
	if (!set)
		return;
	free(set->bits);
	free(set);
}

int pf_pageset_copy(const struct pf_pageset *set, struct pf_pageset **out)
{
	struct pf_pageset *copy;
	int error = pf_pageset_create(set->pages, &copy);

	if (error)
		return error;
	memcpy(copy->bits, set->bits, set->words * sizeof(*set->bits));
	*out = copy;
	return 0;
}

/* Sets or clears a range that is known to fit. */
static void fill(struct pf_pageset *set, uint64_t start, uint64_t count, bool value)
{
	uint64_t page = start, end = start + count;

	while (page < end) {
		uint64_t word = page / WORD_BITS;
		uint64_t word_end = (word + 1) * WORD_BITS;
		unsigned low = page % WORD_BITS;
		unsigned high = end < word_end ? end % WORD_BITS : WORD_BITS;
		uint64_t mask = mask_of(low, high);

		if (value)
			set->bits[word] |= mask;
		else
			set->bits[word] &= ~mask;
		page = word_end;
	}
}

int pf_pageset_add(struct pf_pageset *set, uint64_t start, uint64_t count)
{
	int error = range_check(set, start, count);

	if (!error)
		fill(set, start, count, true);
	return error;
}

int pf_pageset_discard(struct pf_pageset *set, uint64_t start, uint64_t count)
{
	int error = range_check(set, start, count);

	if (!error)
		fill(set, start, count, false);
	return error;
}

static int fill_runs(struct pf_pageset *set, const struct pf_runs *runs, bool value)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);

	if (!pf_runs_fit(runs, set->pages))
		return ERANGE;
	for (size_t i = 0; i < length; i++)
		fill(set, items[i].start, items[i].count, value);
	return 0;
}

int pf_pageset_add_runs(struct pf_pageset *set, const struct pf_runs *runs)
{
	return fill_runs(set, runs, true);
}

int pf_pageset_discard_runs(struct pf_pageset *set, const struct pf_runs *runs)
{
	return fill_runs(set, runs, false);
}

int pf_pageset_add_all(struct pf_pageset *set, const struct pf_pageset *other)
{
	if (set->pages != other->pages)
		return ERANGE;
	for (uint64_t i = 0; i < set->words; i++)
		set->bits[i] |= other->bits[i];
	return 0;
}

int pf_pageset_discard_all(struct pf_pageset *set, const struct pf_pageset *other)
{
	if (set->pages != other->pages)
		return ERANGE;
	for (uint64_t i = 0; i < set->words; i++)
		set->bits[i] &= ~other->bits[i];
	return 0;
}

int pf_pageset_keep_all(struct pf_pageset *set, const struct pf_pageset *other)
{
	if (set->pages != other->pages)
		return ERANGE;
	for (uint64_t i = 0; i < set->words; i++)
		set->bits[i] &= other->bits[i];
	return 0;
}

int pf_pageset_note_sent(struct pf_pageset *sent, struct pf_pageset *settled,
			 const struct pf_runs *nonzero, const struct pf_runs *zero)
{
	int error = pf_pageset_add_runs(sent, nonzero);

	if (!error)
		error = pf_pageset_discard_runs(sent, zero);
	if (!error)
		error = pf_pageset_add_runs(settled, nonzero);
	return error ? error : pf_pageset_add_runs(settled, zero);
}

void pf_pageset_clear(struct pf_pageset *set)
{
	memset(set->bits, 0, set->words * sizeof(*set->bits));
}

bool pf_pageset_has(const struct pf_pageset *set, uint64_t page)
{
	return page < set->pages && (set->bits[page / WORD_BITS] >> (page % WORD_BITS) & 1);
}

bool pf_pageset_any(const struct pf_pageset *set)
{
	for (uint64_t i = 0; i < set->words; i++)
		if (set->bits[i])
			return true;
	return false;
}

bool pf_pageset_equal(const struct pf_pageset *set, const struct pf_pageset *other)
{
	return set->pages == other->pages &&
	       !memcmp(set->bits, other->bits, set->words * sizeof(*set->bits));
}

int pf_pageset_count_range(const struct pf_pageset *set, uint64_t start, uint64_t count,
			   uint64_t *out)
{
	uint64_t page = start, total = 0;
	int error = range_check(set, start, count);

	if (error)
		return error;
	while (page < start + count) {
		uint64_t word = page / WORD_BITS;
		uint64_t word_end = (word + 1) * WORD_BITS;
		unsigned high = start + count < word_end ? (start + count) % WORD_BITS : WORD_BITS;

		total += __builtin_popcountll(set->bits[word] & mask_of(page % WORD_BITS, high));
		page = word_end;
	}
	*out = total;
	return 0;
}

/* The first page at or after "from" whose bit is "value"; set->pages when there is none. */
static uint64_t find(const struct pf_pageset *set, uint64_t from, bool value)
{
	uint64_t flip = value ? 0 : ~UINT64_C(0);
	uint64_t word = from / WORD_BITS, bits, page;

	if (from >= set->pages)
		return set->pages;
	bits = (set->bits[word] ^ flip) & ~((UINT64_C(1) << (from % WORD_BITS)) - 1);
	while (!bits) {
		if (++word == set->words)
			return set->pages;
		bits = set->bits[word] ^ flip;
	}
	page = word * WORD_BITS + __builtin_ctzll(bits);
	return page < set->pages ? page : set->pages;
}

int pf_pageset_next(const struct pf_pageset *set, uint64_t from, struct pf_run *out)
{
	uint64_t start = find(set, from, true);

	if (start == set->pages)
		return ENOENT;
	out->start = start;
	out->count = find(set, start, false) - start;
	return 0;
}

int pf_pageset_take(const struct pf_pageset *set, uint64_t from, uint64_t limit,
		    uint64_t max_pages, uint64_t max_runs, struct pf_runs **out)
{
	struct pf_runs *runs;
	struct pf_run run;
	int error = pf_runs_create(&runs);

	if (error)
		return error;
	while (max_pages && max_runs && !pf_pageset_next(set, from, &run)) {
		/* No pages when another thread, against the rules, took the run's first bit just now. */
		if (!run.count || run.start >= limit)
			break;
		if (run.count > limit - run.start)
			run.count = limit - run.start;
		if (run.count > max_pages)
			run.count = max_pages;
		error = pf_runs_append(runs, run.start, run.count);
		if (error) {
			pf_runs_destroy(runs);
			return error;
		}
		max_pages -= run.count;
		max_runs--;
		from = run.start + run.count;
	}
	*out = runs;
	return 0;
}

/* Runs of this length or longer are all alike. */
#define LONG_RUN 4096

static uint64_t class_of(const struct pf_run *run)
{
	return run->count < LONG_RUN ? run->count : LONG_RUN;
}

int pf_pageset_keep_long_runs(struct pf_pageset *set, uint64_t max_runs)
{
	uint64_t *of_class = calloc(LONG_RUN + 1, sizeof(*of_class)), kept = 0, least = LONG_RUN + 1;
	struct pf_run run = {0, 0};

	if (!of_class)
		return ENOMEM;
	for (uint64_t from = 0; !pf_pageset_next(set, from, &run); from = run.start + run.count)
		of_class[class_of(&run)]++;
	while (least > 1 && kept + of_class[least - 1] <= max_runs)
		kept += of_class[--least];
	free(of_class);
	for (uint64_t from = 0; !pf_pageset_next(set, from, &run); from = run.start + run.count)
		if (class_of(&run) < least)
			pf_pageset_discard(set, run.start, run.count);
	return 0;
}
