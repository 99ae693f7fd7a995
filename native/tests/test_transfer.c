/* Page payload over a socket pair: scattered runs, short writes, a peer that leaves. */

#include "check.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGES 6000

static uint8_t *new_ram(int *fd)
{
	uint8_t *base;

	*fd = memfd_create("pageferry-test", MFD_CLOEXEC);
	CHECK(*fd >= 0 && !ftruncate(*fd, (off_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_map(*fd, 0, (uint64_t)PAGES * PF_PAGE_BYTES, true, &base));
	return base;
}

/* Every other page up to 4000 (more runs than one sendmsg takes), and one long run. */
static struct pf_runs *scattered_runs(void)
{
	struct pf_runs *runs;

	CHECK(!pf_runs_create(&runs));
	for (uint64_t page = 0; page < 4000; page += 2)
		CHECK(!pf_runs_append(runs, page, 1));
	CHECK(!pf_runs_append(runs, 4100, 1900));
	return runs;
}

struct sender {
	int socket_fd;
	const uint8_t *base;
	const struct pf_runs *runs;
	int error;
};

static void *send_it(void *context)
{
	struct sender *sender = context;

	sender->error = pf_send_payload(sender->socket_fd, (const uint8_t *)"head", 4, sender->base,
					PAGES, sender->runs);
	return NULL;
}

static void test_scattered_pages_arrive_where_they_belong(size_t scratch_pages, bool placed)
{
	int source_fd, target_fd, sockets[2], small = 4608;
	uint8_t *source = new_ram(&source_fd), *target = new_ram(&target_fd), head[4];
	uint8_t *scratch = malloc(scratch_pages * PF_PAGE_BYTES);
	struct pf_runs *runs = scattered_runs();
	struct sender sender = {.base = source, .runs = runs};
	struct pf_placer *placer = NULL;
	struct pf_pageset *set;
	pthread_t thread;

	CHECK(!placed || !pf_placer_create(target_fd, 0, (uint64_t)PAGES * PF_PAGE_BYTES, &placer));
	CHECK(scratch && !pf_pageset_create(PAGES, &set) && !pf_pageset_add_runs(set, runs));
	for (uint64_t page = 0; page < PAGES; page++)
		memset(source + page * PF_PAGE_BYTES, (int)(page % 251 + 1), PF_PAGE_BYTES);
	/* Non-blocking, and little buffer: short writes and EAGAIN on both sides. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets));
	CHECK(!setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)));
	sender.socket_fd = sockets[0];
	CHECK(!pthread_create(&thread, NULL, send_it, &sender));
	CHECK(!pf_receive_exact(sockets[1], head, 4) && !memcmp(head, "head", 4));
	CHECK(!pf_receive_payload(sockets[1], target_fd, 0, runs, placer, scratch,
				  scratch_pages * PF_PAGE_BYTES));
	CHECK(!pthread_join(thread, NULL) && !sender.error);
	for (uint64_t page = 0; page < PAGES; page++)
		for (uint64_t i = 0; i < PF_PAGE_BYTES; i += 511)
			CHECK(target[page * PF_PAGE_BYTES + i] ==
			      (pf_pageset_has(set, page) ? page % 251 + 1 : 0));
	pf_placer_destroy(placer);
	pf_pageset_destroy(set);
	pf_runs_destroy(runs);
	free(scratch);
	CHECK(!pf_unmap(source, (uint64_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_unmap(target, (uint64_t)PAGES * PF_PAGE_BYTES));
	close(source_fd);
	close(target_fd);
	close(sockets[0]);
	close(sockets[1]);
}

static void test_peer_that_leaves(void)
{
	int fd, sockets[2];
	uint8_t *base = new_ram(&fd), scratch[PF_PAGE_BYTES];
	struct pf_runs *runs = make_runs((uint64_t[]){0, 2}, 1);

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	CHECK(write(sockets[0], base, 5000) == 5000);
	close(sockets[0]);
	CHECK(pf_receive_payload(sockets[1], fd, 0, runs, NULL, scratch, sizeof(scratch)) == ECONNRESET);
	close(sockets[1]);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	close(sockets[0]);
	CHECK(pf_send_payload(sockets[1], NULL, 0, base, PAGES, runs) == EPIPE);
	CHECK(pf_send_payload(sockets[1], NULL, 0, base, 1, runs) == ERANGE);
	close(sockets[1]);
	pf_runs_destroy(runs);
	pf_unmap(base, (uint64_t)PAGES * PF_PAGE_BYTES);
	close(fd);
}

static void test_receive_timeout_of_the_socket(void)
{
	const struct timeval soon = {.tv_usec = 1000};
	int sockets[2];
	uint8_t byte;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	CHECK(!setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon)));
	CHECK(pf_receive_exact(sockets[0], &byte, 1) == ETIMEDOUT);
	close(sockets[0]);
	close(sockets[1]);
}

int main(void)
{
	test_scattered_pages_arrive_where_they_belong(1, false);
	test_scattered_pages_arrive_where_they_belong(1, true);
	test_scattered_pages_arrive_where_they_belong(7, false);
	test_scattered_pages_arrive_where_they_belong(7, true);
	test_scattered_pages_arrive_where_they_belong(4096, false);
	test_scattered_pages_arrive_where_they_belong(4096, true);
	test_peer_that_leaves();
	test_receive_timeout_of_the_socket();
	return 0;
}
