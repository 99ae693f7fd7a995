/* Runs of pages: a growing array while it is being filled, immutable afterwards. */

#include "native.h"

#include <errno.h>
#include <stdlib.h>

int pf_runs_create(struct pf_runs **out)
{
	struct pf_runs *runs = calloc(1, sizeof(*runs));

	if (!runs)
		return ENOMEM;
	*out = runs;
	return 0;
}

void pf_runs_destroy(struct pf_runs *runs)
{
	if (!runs)
		return;
	free(runs->items);
	free(runs);
}

size_t pf_runs_length(const struct pf_runs *runs)
{
	return runs->length;
}

uint64_t pf_runs_pages(const struct pf_runs *runs)
{
	return runs->pages;
}

uint64_t pf_runs_end(const struct pf_runs *runs)
{
	if (!runs->length)
		return 0;
	return runs->items[runs->length - 1].start + runs->items[runs->length - 1].count;
}

const struct pf_run *pf_runs_items(const struct pf_runs *runs)
{
	return runs->items;
}

static int grow(struct pf_runs *runs)
{
	size_t capacity = runs->capacity ? runs->capacity * 2 : 16;
	struct pf_run *items = reallocarray(runs->items, capacity, sizeof(*items));

	if (!items)
		return ENOMEM;
	runs->items = items;
	runs->capacity = capacity;
	return 0;
}

int pf_runs_append(struct pf_runs *runs, uint64_t start, uint64_t count)
{
	uint64_t end;
	int error;

	if (!count || start < pf_runs_end(runs) || __builtin_add_overflow(start, count, &end))
		return EINVAL;
	if (runs->length && pf_runs_end(runs) == start) {
		runs->items[runs->length - 1].count += count;
		runs->pages += count;
		return 0;
	}
	if (runs->length == runs->capacity) {
		error = grow(runs);
		if (error)
			return error;
	}
	runs->items[runs->length].start = start;
	runs->items[runs->length].count = count;
	runs->length++;
	runs->pages += count;
	return 0;
}

static int append_gaps(struct pf_runs *runs, const uint64_t *flat, size_t values,
		       uint64_t limit_pages)
{
	uint64_t start, end = 0;
	int error;

	for (size_t i = 0; i + 1 < values; i += 2) {
		if (__builtin_add_overflow(end, flat[i], &start) ||
		    __builtin_add_overflow(start, flat[i + 1], &end) || end > limit_pages)
			return ERANGE;
		error = pf_runs_append(runs, start, flat[i + 1]);
		if (error)
			return error;
	}
	return 0;
}

/* flat comes from a peer: nothing about it is known but its number of values. */
int pf_runs_from_gaps(const uint64_t *flat, size_t values, uint64_t limit_pages,
		      struct pf_runs **out)
{
	struct pf_runs *runs;
	int error;

	if (values % 2)
		return EINVAL;
	error = pf_runs_create(&runs);
	if (error)
		return error;
	error = append_gaps(runs, flat, values, limit_pages);
	if (error) {
		pf_runs_destroy(runs);
		return error;
	}
	*out = runs;
	return 0;
}

void pf_runs_to_gaps(const struct pf_runs *runs, uint64_t *flat)
{
	uint64_t end = 0;

	for (size_t i = 0; i < runs->length; i++) {
		flat[2 * i] = runs->items[i].start - end;
		flat[2 * i + 1] = runs->items[i].count;
		end = runs->items[i].start + runs->items[i].count;
	}
}

static uint64_t end_of(const struct pf_run *run)
{
	return run->start + run->count;
}

static int append_minus(const struct pf_runs *runs, const struct pf_runs *other,
			struct pf_runs *out)
{
	size_t skip = 0;
	int error;

	for (size_t i = 0; i < runs->length; i++) {
		uint64_t start = runs->items[i].start, end = end_of(&runs->items[i]);

		while (skip < other->length && end_of(&other->items[skip]) <= start)
			skip++;
		for (size_t n = skip; n < other->length && other->items[n].start < end; n++) {
			if (other->items[n].start > start) {
				error = pf_runs_append(out, start, other->items[n].start - start);
				if (error)
					return error;
			}
			start = end_of(&other->items[n]);
		}
		if (start < end) {
			error = pf_runs_append(out, start, end - start);
			if (error)
				return error;
		}
	}
	return 0;
}

int pf_runs_minus(const struct pf_runs *runs, const struct pf_runs *other, struct pf_runs **out)
{
	struct pf_runs *rest;
	int error = pf_runs_create(&rest);

	if (error)
		return error;
	error = append_minus(runs, other, rest);
	if (error) {
		pf_runs_destroy(rest);
		return error;
	}
	*out = rest;
	return 0;
}

int pf_runs_cut(const struct pf_runs *runs, uint64_t first, uint64_t count, struct pf_runs **out)
{
	struct pf_runs *part;
	int error = pf_runs_create(&part);

	if (error)
		return error;
	for (size_t i = 0; i < runs->length && count; i++) {
		uint64_t here = runs->items[i].count, taken;

		if (first >= here) {
			first -= here;
			continue;
		}
		taken = here - first < count ? here - first : count;
		error = pf_runs_append(part, runs->items[i].start + first, taken);
		if (error) {
			pf_runs_destroy(part);
			return error;
		}
		count -= taken;
		first = 0;
	}
	*out = part;
	return 0;
}

static int compare_pages(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

int pf_runs_from_pages(uint64_t *page_numbers, size_t length, struct pf_runs **out)
{
	struct pf_runs *runs;
	int error = pf_runs_create(&runs);

	if (error)
		return error;
	if (length)
		qsort(page_numbers, length, sizeof(*page_numbers), compare_pages);
	for (size_t i = 0; i < length && !error; i++)
		error = pf_runs_append(runs, page_numbers[i], 1);
	if (error) {
		pf_runs_destroy(runs);
		return error;
	}
	*out = runs;
	return 0;
}

void pf_free(void *memory)
{
	free(memory);
}
