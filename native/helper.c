/*
 * The helper process that injects (see inject.c for why it is one): made here with all signals
 * blocked, waited for, never killed. Its result and the descriptor come over a socket pair.
 */

#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* More than any step of the helper takes. */
#define HELPER_DEADLINE_MS 15000

/* Sends the result, and with it the descriptor if there is one. */
static void report(int socket_fd, const struct pf_injection *result)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec vector = {.iov_base = (void *)result, .iov_len = sizeof(*result)};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

	memset(&control, 0, sizeof(control));
	if (!result->error) {
		struct cmsghdr *header;

		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &result->uffd, sizeof(int));
	}
	sendmsg(socket_fd, &message, MSG_NOSIGNAL);
}

/* The parent's side of report. ECHILD when the helper died, ETIMEDOUT when it is stuck. */
static int collect(int socket_fd, struct pf_injection *out)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct pf_injection result;
	struct iovec vector = {.iov_base = &result, .iov_len = sizeof(result)};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	struct pollfd poll_fd = {.fd = socket_fd, .events = POLLIN};
	struct cmsghdr *header;
	ssize_t length;
	int ready;

	do {
		ready = poll(&poll_fd, 1, HELPER_DEADLINE_MS);
	} while (ready < 0 && errno == EINTR);
	if (ready <= 0)
		return ready ? errno : ETIMEDOUT;
	do {
		length = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
	} while (length < 0 && errno == EINTR);
	if (length != sizeof(result))
		return ECHILD;
	result.uffd = -1;
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(&result.uffd, CMSG_DATA(header), sizeof(int));
	if (!result.error && result.uffd < 0)
		return EMFILE; /* the descriptor did not fit into our table */
	*out = result;
	return 0;
}

static void close_all_but(int fd)
{
	if (fd > 0)
		close_range(0, (unsigned)fd - 1, 0);
	close_range((unsigned)fd + 1, ~0u, 0);
}

/* An agent that is short of memory must not take the guest with it. Without privilege: no effect. */
static void shun_oom_killer(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, "-1000", 5) < 0)
		errno = 0;
	close(fd);
}

/* Forks the helper with all signals blocked, so that it is never without that protection. */
static int start_helper(struct injector *injector, int theirs)
{
	sigset_t all, before;
	int child;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	/* _Fork runs no handlers of other libraries (glibc 2.34). */
	child = _Fork();
	if (!child) {
		/* Should it ever get stuck, it must not keep our connections and locks open. */
		close_all_but(theirs);
		shun_oom_killer();
		pf_inject(injector);
		report(theirs, &injector->result);
		_exit(0);
	}
	if (child < 0)
		child = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return child;
}

int pf_inject_userfaultfd(int pid, int tid, uint64_t syscall_address, struct pf_injection *out)
{
	struct injector injector = {.pid = pid, .tid = tid, .syscall_address = syscall_address,
				.pidfd = -1, .result = {.uffd = -1}};
	int sockets[2], child, error;

	*out = injector.result;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) {
		out->error = errno;
		return out->error;
	}
	child = start_helper(&injector, sockets[1]);
	close(sockets[1]);
	if (child < 0) {
		close(sockets[0]);
		out->error = -child;
		return out->error;
	}
	error = collect(sockets[0], out);
	close(sockets[0]);
	if (error) {
		out->error = error;
		out->step = PF_STEP_STUCK;
	}
	/* A stuck helper is left to itself: to kill it now could kill the guest. */
	if (error != ETIMEDOUT)
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
	return out->error;
}
