/*
 * Numbered records on a disk. Record n lies in place n % places, so that each place holds the last
 * of its numbers, and nobody but this guest can have put it there.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define STAMPS (PAGE / sizeof(struct stamp))
#define FORESEEN 7919u /* a prime: which older record is read again looks random */

static int disk = -1;
static uint64_t places, pace_us;
/* The last record on the disk; numbers start at 1. */
static uint64_t last, bad;
static struct stamp *out, *in;
static pthread_t writer;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int open_writable(void)
{
	for (char letter = 'a'; letter <= 'h'; letter++) {
		char path[] = "/dev/vdX";
		int read_only = 0, fd;

		path[7] = letter;
		fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, BLKROGET, &read_only) && !read_only)
			return fd;
		close(fd);
	}
	return -1;
}

/* The number of the record that `place` must hold now; 0 if none was written there. */
static uint64_t number_in(uint64_t place)
{
	uint64_t behind = (last + places - place) % places;

	return behind < last ? last - behind : 0;
}

static void check(uint64_t place)
{
	uint64_t number = number_in(place);
	size_t i = 0;

	if (!number)
		return;
	if (pread(disk, in, PAGE, (off_t)(place * PAGE)) != PAGE) {
		say("ERROR reading record %llu: %s", (unsigned long long)number, strerror(errno));
		return;
	}
	while (i < STAMPS && in[i].salt == place && in[i].number == number)
		i++;
	if (i < STAMPS && bad++ < MAX_BAD_LINES)
		say("B place=%llu holds place=%llu record=%llu, not %llu", (unsigned long long)place,
		    (unsigned long long)in[i].salt, (unsigned long long)in[i].number,
		    (unsigned long long)number);
}

static void write_next(void)
{
	uint64_t number = last + 1, place = number % places;

	for (size_t i = 0; i < STAMPS; i++)
		out[i] = (struct stamp){place, number};
	if (pwrite(disk, out, PAGE, (off_t)(place * PAGE)) != PAGE) {
		say("ERROR writing record %llu: %s", (unsigned long long)number, strerror(errno));
		return;
	}
	last = number;
	check(number * FORESEEN % places);
}

static void *write_without_end(void *unused)
{
	for (;;) {
		pthread_mutex_lock(&lock);
		write_next();
		pthread_mutex_unlock(&lock);
		usleep((useconds_t)pace_us);
	}
	return unused;
}

bool records_write(const char *command)
{
	if (disk >= 0)
		return false;
	disk = open_writable();
	if (disk < 0)
		return false;
	places = parameter(command, "slots", 256);
	pace_us = parameter(command, "pace_us", 2000);
	out = aligned_alloc(PAGE, PAGE);
	in = aligned_alloc(PAGE, PAGE);
	return out && in && places && !pthread_create(&writer, NULL, write_without_end, NULL);
}

void records_verify(void)
{
	pthread_mutex_lock(&lock);
	for (uint64_t place = 0; place < places; place++)
		check(place);
	say("RECORDS checked=%llu bad=%llu last=%llu",
	    (unsigned long long)(last < places ? last : places), (unsigned long long)bad,
	    (unsigned long long)last);
	pthread_mutex_unlock(&lock);
}

void records_report(void)
{
	if (disk >= 0)
		say("S records=%llu bad=%llu", (unsigned long long)last, (unsigned long long)bad);
}
