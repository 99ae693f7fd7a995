/*
 * Swap locations of shared pages, from /proc/self/pagemap of a kernel that reports them.
 *
 * The stock kernel leaves the entries of swapped shmem pages empty (Documentation/admin-guide/mm/
 * pagemap.rst says so), so use this only after a probe. The agent's own mapping is looked at, never
 * QEMU's: that one carries write-protection markers, which read as swapped even over holes.
 */

#include "native.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Documentation/admin-guide/mm/pagemap.rst */
#define ENTRY_PRESENT (UINT64_C(1) << 63)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_LOCATION ((UINT64_C(1) << 55) - 1)
#define ENTRY_TYPE(entry) ((entry) & 31)
#define ENTRY_OFFSET(entry) (((entry) & ENTRY_LOCATION) >> 5)

/*
 * Types from here on are not swap devices but migration entries, markers, poisoned and device
 * pages: 32 less at most nine of those (include/linux/swap.h: MAX_SWAPFILES).
 */
#define FIRST_SPECIAL_TYPE 23

/* One read of 2048 entries covers 8 MiB; below 512 (one page table) the cost per entry rises. */
#define BATCH_ENTRIES 2048

/*
 * Runs that are no farther apart are read together: a call takes 1.1 us for one entry, 1.3 us for 64
 * and 7.6 us for 2048. A batch in the order of swap slots may ask for hundreds of single pages all
 * over the block.
 */
#define MAX_GAP_ENTRIES 64

static bool is_swapped(uint64_t entry)
{
	if ((entry & (ENTRY_PRESENT | ENTRY_SWAPPED | ENTRY_FILE)) != (ENTRY_SWAPPED | ENTRY_FILE))
		return false;
	return ENTRY_TYPE(entry) < FIRST_SPECIAL_TYPE;
}

typedef int (*entry_function)(void *context, uint64_t page, uint64_t entry);

static int read_entries(int pagemap_fd, const uint8_t *base, uint64_t start, uint64_t count,
			uint64_t *entries)
{
	uint64_t first = ((uintptr_t)base >> PF_PAGE_SHIFT) + start;
	size_t done = 0, bytes = count * sizeof(*entries);

	while (done < bytes) {
		ssize_t part = pread(pagemap_fd, (uint8_t *)entries + done, bytes - done,
				     (off_t)(first * sizeof(*entries) + done));

		if (part < 0 && errno == EINTR)
			continue;
		if (part < 0)
			return errno;
		if (!part)
			return EIO;
		done += (size_t)part;
	}
	return 0;
}

/* How many entries from "page" on, in the run "first" or after it, to read in one go. */
static uint64_t batch_length(const struct pf_run *items, size_t first, size_t length, uint64_t page)
{
	uint64_t end = page;

	for (size_t i = first; i < length; i++) {
		uint64_t run_end = items[i].start + items[i].count;

		if (i > first && items[i].start > end + MAX_GAP_ENTRIES)
			break;
		end = run_end;
		if (end >= page + BATCH_ENTRIES)
			return BATCH_ENTRIES;
	}
	return end - page;
}

static int for_each_swapped(int pagemap_fd, const uint8_t *base, uint64_t pages,
			    const struct pf_runs *runs, entry_function function, void *context)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);
	uint64_t *entries;
	/* The batch that "entries" holds: a batch is read once, however many runs lie in it. */
	uint64_t batch_start = 0, batch_count = 0;
	int error = 0;

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	entries = malloc(BATCH_ENTRIES * sizeof(*entries));
	if (!entries)
		return ENOMEM;
	for (size_t i = 0; i < length && !error; i++) {
		uint64_t end = items[i].start + items[i].count;

		for (uint64_t page = items[i].start; page < end && !error; page++) {
			if (page >= batch_start + batch_count) {
				batch_start = page;
				batch_count = batch_length(items, i, length, page);
				error = read_entries(pagemap_fd, base, batch_start, batch_count,
						     entries);
				if (error)
					break;
			}
			if (is_swapped(entries[page - batch_start]))
				error = function(context, page, entries[page - batch_start]);
		}
	}
	free(entries);
	return error;
}

static int append_page(void *context, uint64_t page, uint64_t entry)
{
	(void)entry;
	return pf_runs_append(context, page, 1);
}

int pf_pagemap_swapped(int pagemap_fd, uint8_t *base, uint64_t pages, const struct pf_runs *runs,
		       struct pf_runs **out)
{
	struct pf_runs *swapped;
	int error = pf_runs_create(&swapped);

	if (error)
		return error;
	error = for_each_swapped(pagemap_fd, base, pages, runs, append_page, swapped);
	if (error) {
		pf_runs_destroy(swapped);
		return error;
	}
	*out = swapped;
	return 0;
}

struct located_page {
	uint64_t slot; /* type in the high bits, offset in the low ones */
	uint64_t page;
};

struct slot_list {
	struct located_page *items;
	size_t length;
	size_t capacity;
	size_t located;
};

static int append_slot(void *context, uint64_t page, uint64_t entry)
{
	struct slot_list *list = context;

	if (list->length == list->capacity)
		return EOVERFLOW;
	list->items[list->length].slot = ENTRY_TYPE(entry) << 50 | ENTRY_OFFSET(entry);
	list->items[list->length].page = page;
	list->length++;
	/* Offset 0 of a swap device holds its header, so no page ever lies there. */
	list->located += ENTRY_OFFSET(entry) != 0;
	return 0;
}

static int compare_slots(const void *left, const void *right)
{
	const struct located_page *a = left, *b = right;

	if (a->slot != b->slot)
		return a->slot < b->slot ? -1 : 1;
	return (a->page > b->page) - (a->page < b->page);
}

int pf_pagemap_slot_order(int pagemap_fd, uint8_t *base, uint64_t pages,
			  const struct pf_runs *runs, uint64_t **slot_pages, size_t *length,
			  size_t *located)
{
	struct slot_list list = {.capacity = pf_runs_pages(runs)};
	uint64_t *numbers = NULL;
	int error;

	list.items = calloc(list.capacity + 1, sizeof(*list.items));
	numbers = calloc(list.capacity + 1, sizeof(*numbers));
	error = list.items && numbers ? 0 : ENOMEM;
	if (!error)
		error = for_each_swapped(pagemap_fd, base, pages, runs, append_slot, &list);
	if (!error) {
		qsort(list.items, list.length, sizeof(*list.items), compare_slots);
		for (size_t i = 0; i < list.length; i++)
			numbers[i] = list.items[i].page;
		*slot_pages = numbers;
		*length = list.length;
		*located = list.located;
		numbers = NULL;
	}
	free(numbers);
	free(list.items);
	return error;
}
