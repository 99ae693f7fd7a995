/*
 * The agent's own mapping of a guest's RAM file, and paging by way of it.
 *
 * MADV_PAGEOUT takes only pages that the calling address space maps, and leaves out those that
 * another one maps as well (mm/madvise.c: madvise_cold_or_pageout_pte_range). That is how a page
 * that the guest has touched meanwhile stays in by itself.
 */

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

/* Linux 5.4 and 5.14; glibc 2.36 has both, older build hosts may not. */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

int pf_map(int fd, uint64_t file_offset, uint64_t length, bool writable, uint8_t **out)
{
	int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
	void *base = mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)file_offset);
	int error;

	if (base == MAP_FAILED)
		return errno;
	/*
	 * A mapping with VM_SEQ_READ gives reclaim no "referenced" information: neither its accessed
	 * bits nor its going away count (vma_has_recency, commit 8788f6781486, Linux 6.3; before that
	 * the same flag, but not VM_RAND_READ, was looked at in folio_referenced_one and
	 * zap_pte_range). It changes nothing about swap read-ahead of shmem.
	 */
	if (madvise(base, length, MADV_SEQUENTIAL) || madvise(base, length, MADV_DONTFORK)) {
		error = errno;
		munmap(base, length);
		return error;
	}
	*out = base;
	return 0;
}

int pf_unmap(uint8_t *base, uint64_t length)
{
	return munmap(base, length) ? errno : 0;
}

int pf_advise(uint8_t *base, uint64_t pages, const struct pf_runs *runs, int advice)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	for (size_t i = 0; i < length; i++) {
		uint8_t *start = base + items[i].start * PF_PAGE_BYTES;

		while (madvise(start, items[i].count * PF_PAGE_BYTES, advice)) {
			if (errno != EINTR && errno != EAGAIN)
				return errno;
		}
	}
	return 0;
}

int pf_page_out(uint8_t *base, uint64_t pages, const struct pf_runs *runs)
{
	return pf_advise(base, pages, runs, MADV_PAGEOUT);
}

int pf_read_ahead(uint8_t *base, uint64_t pages, const struct pf_runs *runs)
{
	int error = pf_advise(base, pages, runs, MADV_WILLNEED);

	pf_drain_batch();
	return error;
}

int pf_populate(uint8_t *base, uint64_t pages, const struct pf_runs *runs)
{
	int error = pf_advise(base, pages, runs, MADV_POPULATE_READ);

	pf_drain_batch();
	return error;
}

int pf_bring_in(uint8_t *base, uint64_t pages, const struct pf_runs *runs, bool swapped, int level,
		struct pf_runs **nonzero, struct pf_runs **zero)
{
	int error = swapped ? pf_read_ahead(base, pages, runs) : 0;

	if (!error)
		error = pf_populate(base, pages, runs);
	return error ? error : pf_split_zero(base, pages, runs, level, nonzero, zero);
}

int pf_put_out(uint8_t *base, uint64_t pages, int fd, uint64_t file_offset,
	       const struct pf_runs *runs, bool map, uint64_t *stayed)
{
	uint64_t resident = 0;
	int error = map ? pf_populate(base, pages, runs) : 0;
	int unmapped;

	if (!error)
		error = pf_page_out(base, pages, runs);
	if (!error)
		error = pf_count_resident(base, pages, fd, file_offset, runs, &resident);
	unmapped = pf_advise(base, pages, runs, MADV_DONTNEED);
	if (!error)
		error = unmapped;
	if (!error)
		*stayed = resident;
	return error;
}

/*
 * A page that comes in waits in a batch of its processor (up to 31 of them) until it is on the LRU
 * list, and only from there can it be paged out. MADV_COLD and MADV_PAGEOUT empty the batch of the
 * processor they run on first (lru_add_drain in mm/madvise.c), whatever they are asked about: here
 * a page that nobody ever touches. 0.3 us.
 */
void pf_drain_batch(void)
{
	static uint8_t untouched[PF_PAGE_BYTES] __attribute__((aligned(4096)));

	madvise(untouched, sizeof(untouched), MADV_COLD);
}

/* More processors than any host has; a mask that is too short is EINVAL. */
#define MAX_PROCESSORS 8192

static int page_out_on_each(uint8_t *base, uint64_t pages, const struct pf_runs *runs,
			    const cpu_set_t *allowed, cpu_set_t *one, size_t set_bytes)
{
	int error;

	for (int processor = 0; processor < MAX_PROCESSORS; processor++) {
		if (!CPU_ISSET_S(processor, set_bytes, allowed))
			continue;
		CPU_ZERO_S(set_bytes, one);
		CPU_SET_S(processor, set_bytes, one);
		/* It may have gone offline: so has its batch. */
		if (sched_setaffinity(0, set_bytes, one))
			continue;
		error = pf_page_out(base, pages, runs);
		if (error)
			return error;
	}
	return 0;
}

int pf_page_out_everywhere(uint8_t *base, uint64_t pages, const struct pf_runs *runs)
{
	size_t set_bytes = CPU_ALLOC_SIZE(MAX_PROCESSORS);
	cpu_set_t *allowed = CPU_ALLOC(MAX_PROCESSORS), *one = CPU_ALLOC(MAX_PROCESSORS);
	int error = allowed && one ? 0 : ENOMEM;

	if (!error && sched_getaffinity(0, set_bytes, allowed))
		error = errno;
	if (!error) {
		error = page_out_on_each(base, pages, runs, allowed, one, set_bytes);
		sched_setaffinity(0, set_bytes, allowed);
	}
	CPU_FREE(allowed);
	CPU_FREE(one);
	return error;
}

int pf_punch(int fd, uint64_t file_offset, const struct pf_runs *runs)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);

	for (size_t i = 0; i < length; i++) {
		off_t start = (off_t)(file_offset + items[i].start * PF_PAGE_BYTES);

		while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start,
				 (off_t)(items[i].count * PF_PAGE_BYTES))) {
			if (errno != EINTR)
				return errno;
		}
	}
	return 0;
}
