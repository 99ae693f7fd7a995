/* Reading virtio disks through the page cache, and checking every byte of it. */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_DISKS 8
#define MAX_THREADS 64
#define STEP 7919u /* a prime, so that the order visits each chunk once in a pass */
#define CHECK_BYTES (64u * 1024u)

struct disk {
	char name[32];
	int fd;
	uint64_t bytes, salt;
	atomic_ullong turn, blocks, bad, longest_us;
	pthread_t threads[MAX_THREADS];
};

static struct disk disks[MAX_DISKS];
static int disk_count, thread_count;
static uint64_t chunk_bytes, keep_chunks;
static atomic_bool reading;
static atomic_int bad_lines;

static bool find_disk(char letter)
{
	struct disk *disk = &disks[disk_count];
	char path[64];
	struct stamp first;
	FILE *serial;

	snprintf(path, sizeof path, "/sys/block/vd%c/serial", letter);
	serial = fopen(path, "re");
	if (!serial)
		return false;
	if (fscanf(serial, "%31s", disk->name) != 1)
		snprintf(disk->name, sizeof disk->name, "vd%c", letter);
	fclose(serial);
	snprintf(path, sizeof path, "/dev/vd%c", letter);
	disk->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (disk->fd < 0 || ioctl(disk->fd, BLKGETSIZE64, &disk->bytes) ||
	    pread(disk->fd, &first, sizeof first, 0) != sizeof first) {
		say("ERROR %s: %s", path, strerror(errno));
		return false;
	}
	disk->salt = first.salt;
	/* One request for each read, of just its size: no read-ahead of the kernel's own. */
	posix_fadvise(disk->fd, 0, 0, POSIX_FADV_RANDOM);
	disk_count++;
	return true;
}

int disks_find(void)
{
	for (char letter = 'a'; disk_count < MAX_DISKS && find_disk(letter); letter++)
		;
	return disk_count;
}

void disks_describe(char *text, size_t size)
{
	size_t length = 0;

	text[0] = 0;
	for (int i = 0; i < disk_count && length < size; i++)
		length += (size_t)snprintf(text + length, size - length, "%s%s:%llu", i ? "," : "",
					   disks[i].name,
					   (unsigned long long)(disks[i].bytes / PAGE));
}

/* The first stamp of the block at `offset` that is wrong, of every `step`-th one; NULL if none. */
static const struct stamp *first_wrong(const struct disk *disk, const struct stamp *block,
				       uint64_t offset, size_t step)
{
	const size_t in_sector = SECTOR / sizeof *block;

	for (size_t i = 0; i < PAGE / sizeof *block; i += step)
		if (block[i].salt != disk->salt ||
		    block[i].number != offset / SECTOR + i / in_sector)
			return &block[i];
	return NULL;
}

static uint64_t bad_blocks(const struct disk *disk, const char *data, uint64_t offset,
			   size_t length, size_t step)
{
	uint64_t bad = 0;

	for (size_t at = 0; at + PAGE <= length; at += PAGE) {
		const struct stamp *wrong =
			first_wrong(disk, (const struct stamp *)(data + at), offset + at, step);

		if (!wrong)
			continue;
		bad++;
		if (atomic_fetch_add(&bad_lines, 1) < MAX_BAD_LINES)
			say("B disk=%s block=%llu holds salt=%llx sector=%llu", disk->name,
			    (unsigned long long)((offset + at) / PAGE),
			    (unsigned long long)wrong->salt, (unsigned long long)wrong->number);
	}
	return bad;
}

static uint64_t offset_of_turn(const struct disk *disk, uint64_t turn)
{
	uint64_t chunks = disk->bytes / chunk_bytes;

	return turn * STEP % chunks * chunk_bytes;
}

static void read_chunk(struct disk *disk, char *buffer, uint64_t offset)
{
	uint64_t began_us = now_us(), took_us, longest_us;
	ssize_t got = pread(disk->fd, buffer, chunk_bytes, (off_t)offset);

	took_us = now_us() - began_us;
	if (got != (ssize_t)chunk_bytes) {
		say("ERROR %s at %llu: %s", disk->name, (unsigned long long)offset,
		    got < 0 ? strerror(errno) : "short read");
		got = 0;
	}
	longest_us = atomic_load(&disk->longest_us);
	while (took_us > longest_us &&
	       !atomic_compare_exchange_weak(&disk->longest_us, &longest_us, took_us))
		;
	atomic_fetch_add(&disk->blocks, (uint64_t)got / PAGE);
	atomic_fetch_add(&disk->bad, bad_blocks(disk, buffer, offset, (size_t)got,
						SECTOR / sizeof(struct stamp)));
}

static void *read_without_end(void *argument)
{
	struct disk *disk = argument;
	char *buffer = aligned_alloc(PAGE, chunk_bytes);

	while (buffer && atomic_load(&reading)) {
		uint64_t turn = atomic_fetch_add(&disk->turn, 1);

		if (turn >= keep_chunks)
			posix_fadvise(disk->fd, (off_t)offset_of_turn(disk, turn - keep_chunks),
				      (off_t)chunk_bytes, POSIX_FADV_DONTNEED);
		read_chunk(disk, buffer, offset_of_turn(disk, turn));
	}
	free(buffer);
	return NULL;
}

void disks_read(const char *command)
{
	uint64_t most_chunks;

	disks_stop();
	thread_count = (int)parameter(command, "threads", 8);
	if (thread_count < 1 || thread_count > MAX_THREADS)
		thread_count = MAX_THREADS;
	chunk_bytes = parameter(command, "chunk_kib", 128) * 1024u;
	keep_chunks = parameter(command, "keep_mib", 64) * MIB / chunk_bytes;
	atomic_store(&reading, true);
	for (int i = 0; i < disk_count; i++) {
		/* A chunk must have been dropped, and no one still read it, when its turn comes. */
		most_chunks = disks[i].bytes / chunk_bytes - 2u * (uint64_t)thread_count;
		if (keep_chunks > most_chunks)
			keep_chunks = most_chunks;
	}
	for (int i = 0; i < disk_count; i++) {
		atomic_store(&disks[i].turn, 0);
		for (int j = 0; j < thread_count; j++)
			pthread_create(&disks[i].threads[j], NULL, read_without_end, &disks[i]);
	}
}

void disks_stop(void)
{
	if (!atomic_exchange(&reading, false))
		return;
	for (int i = 0; i < disk_count; i++)
		for (int j = 0; j < thread_count; j++)
			pthread_join(disks[i].threads[j], NULL);
}

static void check_disk(const struct disk *disk)
{
	static char buffer[CHECK_BYTES] __attribute__((aligned(4096)));
	struct iovec whole = {buffer, sizeof buffer};
	uint64_t cached = 0, bad = 0, offset = 0;

	while (offset < disk->bytes) {
		/* RWF_NOWAIT: only what is cached, and no read-ahead. */
		ssize_t got = preadv2(disk->fd, &whole, 1, (off_t)offset, RWF_NOWAIT);
		size_t length = got > 0 ? (size_t)got - (size_t)got % PAGE : 0;

		if (got < 0 && errno != EAGAIN) {
			say("ERROR checking %s: %s", disk->name, strerror(errno));
			break;
		}
		cached += length / PAGE;
		bad += bad_blocks(disk, buffer, offset, length, 1);
		offset += length ? length : PAGE;
	}
	say("CHECKED disk=%s cached=%llu bad=%llu", disk->name, (unsigned long long)cached,
	    (unsigned long long)bad);
}

void disks_check(void)
{
	atomic_store(&bad_lines, 0);
	for (int i = 0; i < disk_count; i++)
		check_disk(&disks[i]);
}

void disks_report(void)
{
	if (!atomic_load(&reading))
		return;
	for (int i = 0; i < disk_count; i++) {
		uint64_t chunks = disks[i].bytes / chunk_bytes;

		say("S disk=%s blocks=%llu bad=%llu passes=%llu longest_us=%llu", disks[i].name,
		    (unsigned long long)atomic_load(&disks[i].blocks),
		    (unsigned long long)atomic_load(&disks[i].bad),
		    (unsigned long long)(atomic_load(&disks[i].turn) / chunks),
		    (unsigned long long)atomic_exchange(&disks[i].longest_us, 0));
	}
}
