/*
 * One file whose every read is answered late, by the same time: a disk with a known latency.
 *
 *   late MOUNTPOINT IMAGE DELAY_US
 *
 * Mounts IMAGE, read-only, over the file MOUNTPOINT and serves it until its standard input ends, which
 * it does at the latest with whoever started this. A direct read pins the reader's pages when it is submitted and fills them DELAY_US later,
 * whatever the reader's way of asynchronous I/O, and however many reads are in flight.
 *
 * FUSE by its kernel interface (linux/fuse.h), since that is all it takes: one file, no folder.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_READ (1024u * 1024u)
#define MAX_IN_FLIGHT 4096u
#define REQUEST_BYTES (FUSE_MIN_READ_BUFFER + 65536)
#define NS_PER_US 1000u
#define NS_PER_S 1000000000u

struct late_read {
	uint64_t unique, offset, due_ns;
	uint32_t length;
};

static int device = -1, image = -1;
static struct stat image_status;
static uint64_t delay_ns;

/* All reads wait equally long, so they become due in the order in which they came. */
static struct late_read queue[MAX_IN_FLIGHT];
static uint64_t queue_first, queue_end;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void answer(uint64_t unique, int error, const void *data, size_t length)
{
	struct fuse_out_header head = {
		.len = (uint32_t)(sizeof head + length), .error = -error, .unique = unique};
	struct iovec parts[] = {{&head, sizeof head}, {(void *)data, length}};

	/* ENOENT: the reader was interrupted and is gone. */
	if (writev(device, parts, 2) < 0 && errno != ENOENT)
		perror("late: answering");
}

static void answer_read(const struct late_read *read)
{
	static char data[MAX_READ];
	ssize_t got = pread(image, data, read->length, (off_t)read->offset);

	answer(read->unique, got < 0 ? errno : 0, data, got < 0 ? 0 : (size_t)got);
}

static void answer_due(void)
{
	uint64_t now = now_ns();

	for (; queue_first < queue_end; queue_first++) {
		if (queue[queue_first % MAX_IN_FLIGHT].due_ns > now)
			return;
		answer_read(&queue[queue_first % MAX_IN_FLIGHT]);
	}
}

static void take_read(const struct fuse_in_header *head, const struct fuse_read_in *in)
{
	struct late_read read = {head->unique, in->offset, now_ns() + delay_ns, in->size};

	if (read.length > MAX_READ || queue_end - queue_first == MAX_IN_FLIGHT)
		answer(head->unique, EIO, NULL, 0);
	else
		queue[queue_end++ % MAX_IN_FLIGHT] = read;
}

static void answer_init(uint64_t unique, const struct fuse_init_in *in)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION < in->minor ? FUSE_KERNEL_MINOR_VERSION : in->minor,
		.max_readahead = in->max_readahead,
		/* Without FUSE_ASYNC_DIO Linux AIO would wait for each read in io_submit. */
		.flags = in->flags & (FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_MAX_PAGES),
		.max_background = MAX_IN_FLIGHT / 2,
		.congestion_threshold = MAX_IN_FLIGHT / 2,
		.max_write = 4096,
		.time_gran = 1,
		.max_pages = MAX_READ / 4096,
	};

	answer(unique, 0, &out, sizeof out);
}

static void answer_getattr(uint64_t unique)
{
	struct fuse_attr_out out = {
		.attr_valid = 3600,
		.attr = {
			.ino = FUSE_ROOT_ID,
			.size = (uint64_t)image_status.st_size,
			.blocks = (uint64_t)image_status.st_blocks,
			.mode = S_IFREG | 0444,
			.nlink = 1,
			.blksize = 4096,
		},
	};

	answer(unique, 0, &out, sizeof out);
}

static void serve(const struct fuse_in_header *head)
{
	struct fuse_open_out opened = {.fh = 1};

	switch (head->opcode) {
	case FUSE_INIT:
		answer_init(head->unique, (const struct fuse_init_in *)(head + 1));
		break;
	case FUSE_GETATTR:
		answer_getattr(head->unique);
		break;
	case FUSE_OPEN:
		answer(head->unique, 0, &opened, sizeof opened);
		break;
	case FUSE_READ:
		take_read(head, (const struct fuse_read_in *)(head + 1));
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(head->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break; /* These want no answer. */
	default:
		answer(head->unique, ENOSYS, NULL, 0);
	}
}

/* Serve what has come, wait for more or for the next read to become due. False at the end. */
static bool serve_some(void)
{
	static char request[REQUEST_BYTES] __attribute__((aligned(8)));
	struct pollfd wait[] = {{.fd = device, .events = POLLIN}, {.fd = STDIN_FILENO}};
	uint64_t now = now_ns(), due = queue[queue_first % MAX_IN_FLIGHT].due_ns;
	struct timespec timeout = {1, 0};
	ssize_t got;

	if (queue_first < queue_end) {
		uint64_t left = due > now ? due - now : 0;

		timeout = (struct timespec){(time_t)(left / NS_PER_S), (long)(left % NS_PER_S)};
	}
	ppoll(wait, 2, &timeout, NULL);
	if (wait[1].revents & (POLLHUP | POLLERR))
		return false;
	if (wait[0].revents) {
		got = read(device, request, sizeof request);
		if (got < 0 && errno == ENODEV)
			return false; /* unmounted */
		if (got >= (ssize_t)sizeof(struct fuse_in_header))
			serve((const struct fuse_in_header *)request);
	}
	answer_due();
	return true;
}

int main(int count, char **arguments)
{
	char options[128];

	if (count != 4) {
		fprintf(stderr, "usage: late MOUNTPOINT IMAGE DELAY_US\n");
		return 2;
	}
	prctl(PR_SET_TIMERSLACK, 1);
	delay_ns = strtoull(arguments[3], NULL, 10) * NS_PER_US;
	image = open(arguments[2], O_RDONLY | O_CLOEXEC);
	device = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (image < 0 || device < 0 || fstat(image, &image_status)) {
		perror("late: /dev/fuse or the image");
		return 1;
	}
	snprintf(options, sizeof options, "fd=%d,rootmode=100444,user_id=0,group_id=0,allow_other",
		 device);
	if (mount("pageferry-late", arguments[1], "fuse", MS_RDONLY | MS_NOSUID | MS_NODEV, options)) {
		perror("late: mount");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while (serve_some())
		;
	umount2(arguments[1], MNT_DETACH);
	return 0;
}
