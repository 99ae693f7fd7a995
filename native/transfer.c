/* Page payload between sockets and guest memory, in batches and without the interpreter. */

#include "native.h"
#include "placing.h"
#include "scatter.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* The kernel's UIO_MAXIOV; more in one call is EMSGSIZE. */
#define MAX_VECTORS 1024

/*
 * After EAGAIN: waits where the socket is non-blocking; where it blocks, EAGAIN means that its
 * SO_SNDTIMEO or SO_RCVTIMEO has passed.
 */
static int wait_ready(int socket_fd, short events)
{
	struct pollfd poll_fd = {.fd = socket_fd, .events = events};
	int flags = fcntl(socket_fd, F_GETFL);

	if (flags < 0)
		return errno;
	if (!(flags & O_NONBLOCK))
		return ETIMEDOUT;
	while (poll(&poll_fd, 1, -1) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return 0;
}

/* Sends the vectors whole, changing them as it goes. */
static int send_all(int socket_fd, struct iovec *vectors, size_t length, bool more)
{
	struct msghdr message = {.msg_iov = vectors, .msg_iovlen = length};
	int error;

	while (message.msg_iovlen) {
		ssize_t sent = sendmsg(socket_fd, &message, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
		size_t left;

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			error = wait_ready(socket_fd, POLLOUT);
			if (error)
				return error;
			continue;
		}
		if (sent < 0)
			return errno;
		left = (size_t)sent;
		while (message.msg_iovlen && left >= message.msg_iov->iov_len) {
			left -= message.msg_iov->iov_len;
			message.msg_iov++;
			message.msg_iovlen--;
		}
		if (message.msg_iovlen) {
			message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + left;
			message.msg_iov->iov_len -= left;
		}
	}
	return 0;
}

int pf_send_payload_over(const struct pf_wire *wire, const uint8_t *head, size_t head_bytes,
			 const uint8_t *base, uint64_t pages, const struct pf_runs *runs)
{
	struct iovec vectors[MAX_VECTORS];
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs), used = 0, next = 0;
	int error;

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	if (head_bytes) {
		vectors[used].iov_base = (void *)head;
		vectors[used++].iov_len = head_bytes;
	}
	while (used || next < length) {
		while (used < MAX_VECTORS && next < length) {
			vectors[used].iov_base = (void *)(base + items[next].start * PF_PAGE_BYTES);
			vectors[used++].iov_len = items[next++].count * PF_PAGE_BYTES;
		}
		error = wire->send(wire->context, vectors, used, next < length);
		if (error)
			return error;
		used = 0;
	}
	return 0;
}

int pf_receive_exact(int socket_fd, uint8_t *buffer, size_t length)
{
	int error;

	while (length) {
		ssize_t received = recv(socket_fd, buffer, length, MSG_WAITALL);

		if (received < 0 && errno == EINTR)
			continue;
		if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			error = wait_ready(socket_fd, POLLIN);
			if (error)
				return error;
			continue;
		}
		if (received < 0)
			return errno;
		if (!received)
			return ECONNRESET;
		buffer += received;
		length -= (size_t)received;
	}
	return 0;
}

int pf_write_at(int fd, const uint8_t *buffer, size_t length, uint64_t offset)
{
	while (length) {
		ssize_t written = pwrite(fd, buffer, length, (off_t)offset);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno;
		if (!written)
			return EIO;
		buffer += written;
		offset += (uint64_t)written;
		length -= (size_t)written;
	}
	return 0;
}

/*
 * shmem takes its file's lock for each write, and who waits for that lock spins: on two processors a
 * tenth of a migration's time, which the senders could have used. Here waiting threads sleep.
 */
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

static int write_in_turn(int ram_fd, uint64_t file_offset, struct pf_cursor *cursor, const uint8_t *buffer,
		 uint64_t pages)
{
	int error;

	pthread_mutex_lock(&writing);
	error = pf_scatter(ram_fd, file_offset, cursor, buffer, pages);
	pthread_mutex_unlock(&writing);
	return error;
}

int pf_scatter(int ram_fd, uint64_t file_offset, struct pf_cursor *cursor, const uint8_t *buffer,
	       uint64_t pages)
{
	while (pages) {
		struct pf_run part = pf_next_part(cursor, pages);
		int error = pf_write_at(ram_fd, buffer, part.count * PF_PAGE_BYTES,
					file_offset + part.start * PF_PAGE_BYTES);

		if (error)
			return error;
		buffer += part.count * PF_PAGE_BYTES;
		pages -= part.count;
	}
	return 0;
}

/*
 * pwrite rather than recv into a mapping: the first touch of a fresh page through a mapping costs
 * a fault and a zeroing, which halve the speed.
 */
int pf_receive_payload_over(const struct pf_wire *wire, int ram_fd, uint64_t file_offset,
			    const struct pf_runs *runs, const struct pf_placer *placer,
			    uint8_t *scratch, size_t scratch_bytes)
{
	struct pf_cursor cursor = {.items = pf_runs_items(runs)};
	uint64_t scratch_pages = scratch_bytes / PF_PAGE_BYTES;
	uint64_t left = pf_runs_pages(runs);
	int error;

	if (!scratch_pages)
		return EINVAL;
	while (left) {
		uint64_t part = left < scratch_pages ? left : scratch_pages;

		error = wire->receive(wire->context, scratch, part * PF_PAGE_BYTES);
		if (!error)
			error = placer ? pf_place(placer, &cursor, scratch, part)
				       : write_in_turn(ram_fd, file_offset, &cursor, scratch, part);
		if (error)
			return error;
		left -= part;
	}
	return 0;
}

/* A bare socket as a wire; the context points to its descriptor. */
static int socket_send(void *context, struct iovec *vectors, size_t length, bool more)
{
	return send_all(*(const int *)context, vectors, length, more);
}

static int socket_receive(void *context, uint8_t *buffer, size_t length)
{
	return pf_receive_exact(*(const int *)context, buffer, length);
}

int pf_send_payload(int socket_fd, const uint8_t *head, size_t head_bytes, const uint8_t *base,
		    uint64_t pages, const struct pf_runs *runs)
{
	const struct pf_wire wire = {.send = socket_send, .context = &socket_fd};

	return pf_send_payload_over(&wire, head, head_bytes, base, pages, runs);
}

int pf_receive_payload(int socket_fd, int ram_fd, uint64_t file_offset, const struct pf_runs *runs,
		       const struct pf_placer *placer, uint8_t *scratch, size_t scratch_bytes)
{
	const struct pf_wire wire = {.receive = socket_receive, .context = &socket_fd};

	return pf_receive_payload_over(&wire, ram_fd, file_offset, runs, placer, scratch,
				       scratch_bytes);
}
