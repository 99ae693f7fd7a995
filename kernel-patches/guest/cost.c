/*
 * What it costs to look at a GiB of memory by pagemap and by what else tells swapped pages.
 *
 * QEMU runs this guest with one nanosecond of guest time for each instruction (-icount shift=0), so
 * the time stamp counter counts instructions: repeatable to a per cent on any machine, however
 * loaded. Prints lines of "COST way memory state instructions-per-GiB".
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/fs.h>

#define PAGE_BYTES 4096UL
#define REGION_BYTES (128UL << 20)
#define REGION_PAGES (REGION_BYTES / PAGE_BYTES)
#define REGIONS_PER_GIB ((1UL << 30) / REGION_BYTES)
/* As many entries as pageferry reads at a time: 8 MiB. */
#define BATCH_ENTRIES 2048UL
#define SCAN_REGIONS 4096UL
#define REPETITIONS 3
#define SYS_CACHESTAT 451
#define CHUNK_PAGES 512UL

struct memory {
	const char *name;
	int fd; /* -1 for anonymous memory */
	char *map; /* through which it was written */
	char *seen; /* through which it is looked at */
};

static int pagemap_fd;
static uint64_t entries[BATCH_ENTRIES];

/* The processor's own counter. The clock is the kernel's guess at it, some per cent off on 6.1. */
static uint64_t now(void)
{
	return __builtin_ia32_rdtsc();
}

static void must(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static void by_read(const struct memory *memory)
{
	for (size_t page = 0; page < REGION_PAGES; page += BATCH_ENTRIES) {
		off_t offset = (off_t)(((uintptr_t)memory->seen / PAGE_BYTES + page) * 8);

		must(pread(pagemap_fd, entries, sizeof(entries), offset) == sizeof(entries),
		     "read pagemap");
	}
}

#ifdef PAGEMAP_SCAN
static void scan(const struct memory *memory, uint64_t categories)
{
	static struct page_region regions[SCAN_REGIONS];
	uint64_t start = (uintptr_t)memory->seen, end = start + REGION_BYTES;

	while (start < end) {
		struct pm_scan_arg arg = {
			.size = sizeof(arg),
			.start = start,
			.end = end,
			.vec = (uintptr_t)regions,
			.vec_len = SCAN_REGIONS,
			.category_anyof_mask = categories,
			.return_mask = categories,
		};

		if (categories == PAGE_IS_WRITTEN) {
			arg.category_mask = categories;
			arg.category_anyof_mask = 0;
		}
		must(ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) >= 0, "scan");
		start = arg.walk_end;
	}
}

static void by_scan(const struct memory *memory)
{
	scan(memory, PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE);
}

static void by_written_scan(const struct memory *memory)
{
	scan(memory, PAGE_IS_WRITTEN);
}
#endif

static void by_mincore(const struct memory *memory)
{
	static unsigned char in_core[CHUNK_PAGES];
	off_t offset = 0;

	for (size_t page = 0; page < REGION_PAGES; page += CHUNK_PAGES)
		must(!mincore(memory->seen + page * PAGE_BYTES, CHUNK_PAGES * PAGE_BYTES, in_core),
		     "mincore");
	while ((offset = lseek(memory->fd, offset, SEEK_DATA)) >= 0)
		offset = lseek(memory->fd, offset, SEEK_HOLE);
}

static void bisect(int fd, uint64_t page, uint64_t count)
{
	struct {
		uint64_t offset, length;
	} range = {page * PAGE_BYTES, count * PAGE_BYTES};
	struct {
		uint64_t cache, dirty, writeback, evicted, recently_evicted;
	} stat;

	if (syscall(SYS_CACHESTAT, fd, &range, &stat, 0) || !stat.evicted ||
	    stat.evicted >= count || count == 1)
		return;
	bisect(fd, page, count / 2);
	bisect(fd, page + count / 2, count - count / 2);
}

static void by_cachestat(const struct memory *memory)
{
	for (uint64_t page = 0; page < REGION_PAGES; page += CHUNK_PAGES)
		bisect(memory->fd, page, CHUNK_PAGES);
}

static void measure(const char *way, void (*look)(const struct memory *),
		    const struct memory *memory, const char *state)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < REPETITIONS; i++) {
		uint64_t start = now(), taken;

		look(memory);
		taken = now() - start;
		if (taken < best)
			best = taken;
	}
	printf("COST %s %s %s %llu\n", way, memory->name, state,
	       (unsigned long long)(best * REGIONS_PER_GIB));
	fflush(stdout);
}

static void measure_all(const struct memory *memory, const char *state)
{
	measure("read", by_read, memory, state);
#ifdef PAGEMAP_SCAN
	{
		struct pm_scan_arg arg = {.size = sizeof(arg)};

		if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) >= 0) {
			measure("scan", by_scan, memory, state);
			measure("scan-written", by_written_scan, memory, state);
		}
	}
#endif
	if (memory->fd < 0)
		return;
	measure("mincore+lseek", by_mincore, memory, state);
	if (syscall(SYS_CACHESTAT, memory->fd, (uint64_t[2]){0, PAGE_BYTES}, (uint64_t[5]){0}, 0) ==
	    0)
		measure("cachestat", by_cachestat, memory, state);
}

static char *map_of(int fd)
{
	char *map = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE,
			 fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

	must(map != MAP_FAILED, "mmap");
	madvise(map, REGION_BYTES, MADV_NOHUGEPAGE);
	return map;
}

static void make(struct memory *memory, const char *name, bool shared)
{
	memory->name = name;
	memory->fd = -1;
	if (shared) {
		memory->fd = (int)syscall(SYS_memfd_create, "cost", 0);
		must(!ftruncate(memory->fd, REGION_BYTES), "ftruncate");
	}
	memory->map = map_of(memory->fd);
	memory->seen = memory->map;
}

static void discard(struct memory *memory)
{
	munmap(memory->map, REGION_BYTES);
	if (memory->fd >= 0)
		close(memory->fd);
}

/* Writes every stride-th page from the first on. */
static void write_pages(struct memory *memory, size_t first, size_t stride)
{
	for (size_t page = first; page < REGION_PAGES; page += stride)
		*(volatile uint64_t *)(memory->map + page * PAGE_BYTES) = page + 1;
}

/* Pages out what write_pages() with the same arguments writes. */
static void page_out(struct memory *memory, size_t first, size_t stride)
{
	size_t bytes = stride == 1 ? REGION_BYTES - first * PAGE_BYTES : PAGE_BYTES;

	for (int tries = 0; tries < 3; tries++)
		for (size_t page = first; page < REGION_PAGES; page += bytes / PAGE_BYTES * stride)
			madvise(memory->map + page * PAGE_BYTES, bytes, MADV_PAGEOUT);
}

/* The same file through a mapping that has no page tables */
static void measure_afresh(struct memory *memory, const char *state)
{
	memory->seen = map_of(memory->fd);
	measure_all(memory, state);
	munmap(memory->seen, REGION_BYTES);
	memory->seen = memory->map;
}

static void holes(bool shared)
{
	struct memory memory;

	make(&memory, shared ? "shmem" : "anonymous", shared);
	measure_all(&memory, "hole");
	if (shared) {
		*(volatile char *)memory.map = 1;
		for (int tries = 0; tries < 3; tries++)
			madvise(memory.map, PAGE_BYTES, MADV_PAGEOUT);
		measure_all(&memory, "hole,one-page-of-the-file-swapped");
	}
	discard(&memory);
}

static void pages(bool shared)
{
	struct memory memory;

	make(&memory, shared ? "shmem" : "anonymous", shared);
	write_pages(&memory, 0, 1);
	measure_all(&memory, "present");
	if (shared) {
		madvise(memory.map, PAGE_BYTES, MADV_PAGEOUT);
		measure_all(&memory, "present,one-page-of-the-file-swapped");
		measure_afresh(&memory, "cached,one-page-of-the-file-swapped,no-page-tables");
	}
	page_out(&memory, 0, 1);
	measure_all(&memory, "swapped");
	if (shared)
		measure_afresh(&memory, "swapped,no-page-tables");
	discard(&memory);
}

static void scattered(void)
{
	struct memory memory;

	make(&memory, "shmem", true);
	write_pages(&memory, 0, 1);
	page_out(&memory, 1, 2);
	measure_all(&memory, "every-second-page-swapped");
	measure_afresh(&memory, "every-second-page-swapped,no-page-tables");
	discard(&memory);
}

int main(void)
{
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	must(pagemap_fd >= 0, "pagemap");
	pages(false);
	holes(false);
	pages(true);
	holes(true);
	scattered();
	return 0;
}
