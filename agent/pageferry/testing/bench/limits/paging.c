/*
 * The limit of paging: what carrying swapped memory asks of the swap device, and nothing else.
 *
 * Usage: paging MIB WINDOW_MIB PUSH_MIB, in a memory cgroup a little larger than PUSH_MIB, with swap
 * on. Fills MIB of shared memory and has it swapped out; then touches PUSH_MIB of other memory, since
 * what was just paged out stays in the swap cache until something needs the room. Then, MiB by MiB and timed: page in (reads started
 * WINDOW_MIB ahead, so the device has a queue), copy into other shared memory as a destination would,
 * and page out both. Prints {"seconds": S, "swap_in_bytes": N, "swap_out_bytes": N}; the counters are
 * the whole host's.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024ul * 1024)

/* From Linux 5.4 and 5.14; older C libraries lack the names. */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static int memory_file(size_t length)
{
	int file = memfd_create("paging", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, (off_t)length))
		err(1, "memfd");
	return file;
}

static uint8_t *map(int file, size_t length, int rights)
{
	void *memory = mmap(NULL, length, rights, MAP_SHARED, file, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	return memory;
}

static void advise(uint8_t *memory, size_t length, int advice)
{
	if (madvise(memory, length, advice))
		err(1, "madvise %d", advice);
}

static unsigned long counter(const char *name)
{
	char line[128];
	size_t length = strlen(name);
	unsigned long value = 0;
	FILE *file = fopen("/proc/vmstat", "r");

	if (!file)
		err(1, "/proc/vmstat");
	while (fgets(line, sizeof line, file))
		if (!strncmp(line, name, length) && line[length] == ' ')
			value = strtoul(line + length, NULL, 10);
	fclose(file);
	return value * 4096;
}

static void fill(uint8_t *memory, size_t length)
{
	for (size_t at = 0; at < length; at += MIB) {
		for (size_t i = 0; i < MIB / 8; i++)
			((uint64_t *)(memory + at))[i] = (at + i) * 0x9e3779b97f4a7c15ul + 1;
		advise(memory + at, MIB, MADV_PAGEOUT);
	}
}

static void push_swap_cache_out(size_t length)
{
	uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	for (size_t at = 0; at < length; at += 4096)
		memory[at] = 1;
	munmap(memory, length);
}

int main(int argc, char **argv)
{
	struct timespec begin, end;

	if (argc != 4)
		errx(2, "usage: paging MIB WINDOW_MIB PUSH_MIB");
	size_t length = strtoul(argv[1], NULL, 10) * MIB, window = strtoul(argv[2], NULL, 10) * MIB;
	if (!length || !window)
		errx(2, "bad size");
	int source_file = memory_file(length), destination_file = memory_file(length);
	uint8_t *source = map(source_file, length, PROT_READ | PROT_WRITE);
	uint8_t *destination = map(destination_file, length, PROT_READ);

	fill(source, length);
	push_swap_cache_out(strtoul(argv[3], NULL, 10) * MIB + 4096);
	unsigned long in = counter("pswpin"), out = counter("pswpout");
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (size_t ahead = 0; ahead < window && ahead < length; ahead += MIB)
		advise(source + ahead, MIB, MADV_WILLNEED);
	for (size_t at = 0; at < length; at += MIB) {
		if (at + window < length)
			advise(source + at + window, MIB, MADV_WILLNEED);
		advise(source + at, MIB, MADV_POPULATE_READ);
		/* By pwrite, which takes no fault for each page; then mapped, to be paged out. */
		if (pwrite(destination_file, source + at, MIB, (off_t)at) != (ssize_t)MIB)
			err(1, "pwrite");
		advise(destination + at, MIB, MADV_POPULATE_READ);
		advise(destination + at, MIB, MADV_PAGEOUT);
		advise(source + at, MIB, MADV_PAGEOUT);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("{\"seconds\": %.6f, \"swap_in_bytes\": %lu, \"swap_out_bytes\": %lu}\n",
	       (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9,
	       counter("pswpin") - in, counter("pswpout") - out);
	return 0;
}
