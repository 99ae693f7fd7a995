/*
 * Making a userfaultfd in another process, by having one of its threads execute the system call.
 *
 * A tracer that dies between the first change of the thread's registers and their restoration kills
 * the process: the thread would go on with ours. So the work is done by a helper process, forked
 * here, which blocks all signals, allocates nothing, prepares everything beforehand and waits for
 * nobody in between. Its parent may be interrupted or killed at any time; only SIGKILL to the
 * helper itself within those 0.2 ms does harm.
 *
 *   seize, interrupt -> event stop        nothing changed yet: the helper may still give up
 *   block the thread's signals            a handler must not run on our registers
 *   userfaultfd: entry stop, exit stop, interrupt -> event stop
 *   pidfd_getfd
 *   close: the same way
 *   registers, signal mask, detach        at an event stop, so that the kernel itself restarts
 *                                         the call that was interrupted (at a syscall-exit stop
 *                                         the program would see ERESTARTSYS)
 *
 * Only async-signal-safe functions run in the helper: its parent has threads.
 */

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SYS_PIDFD_OPEN 434   /* Linux 5.3 */
#define SYS_PIDFD_GETFD 438  /* Linux 5.6 */
#define UFFD_USER_MODE_ONLY_FLAG 1 /* Linux 5.11 */

/* How long a thread that is to be stopped may stay in an uninterruptible sleep. */
#define STOP_DEADLINE_NS (INT64_C(2000) * 1000 * 1000)
#define STOP_POLL_NS (20 * 1000)
/* Parent's patience: more than any step of the helper takes. It never kills the helper. */
#define HELPER_DEADLINE_MS 15000

#define SYSCALL_STOP (SIGTRAP | 0x80)
#define IS_EVENT_STOP(status) ((status) >> 16 == PTRACE_EVENT_STOP)

struct helper {
	int pid;
	int tid;
	uint64_t syscall_address;
	int pidfd;
	struct user_regs_struct saved;
	uint64_t saved_mask;
	bool stop_seen; /* a SIGSTOP arrived meanwhile, and is owed to the thread */
	struct pf_injection result;
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* One stop of the thread, whatever it is. */
static int wait_stop(int tid, int *status)
{
	while (waitpid(tid, status, __WALL) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return WIFSTOPPED(*status) ? 0 : ESRCH;
}

/*
 * The first event stop. Nothing is changed yet: on a timeout the helper simply exits, which
 * detaches. Signals that arrive before it go to the thread as usual.
 */
static int wait_first_stop(struct helper *helper)
{
	const struct timespec pause = {.tv_nsec = STOP_POLL_NS};
	int64_t deadline = now_ns() + STOP_DEADLINE_NS;
	int status;

	for (;;) {
		int pid = waitpid(helper->tid, &status, __WALL | WNOHANG);

		if (pid < 0 && errno != EINTR)
			return errno;
		if (pid <= 0) {
			if (now_ns() > deadline)
				return ETIMEDOUT;
			nanosleep(&pause, NULL);
			continue;
		}
		if (!WIFSTOPPED(status))
			return ESRCH;
		if (IS_EVENT_STOP(status))
			return 0;
		if (ptrace(PTRACE_CONT, helper->tid, NULL, (void *)(long)WSTOPSIG(status)))
			return errno;
	}
}

/* Resumes the thread until a system-call stop; puts off what else stops it. */
static int run_to_syscall_stop(struct helper *helper)
{
	int status, error;

	for (;;) {
		if (ptrace(PTRACE_SYSCALL, helper->tid, NULL, NULL))
			return errno;
		error = wait_stop(helper->tid, &status);
		if (error)
			return error;
		if (status >> 16 == 0 && WSTOPSIG(status) == SYSCALL_STOP)
			return 0;
		/* Signals are blocked, so this can only be SIGSTOP, or the event stop of a group stop. */
		if (!IS_EVENT_STOP(status))
			helper->stop_seen = true;
	}
}

static int run_to_event_stop(struct helper *helper)
{
	int status, error;

	if (ptrace(PTRACE_INTERRUPT, helper->tid, NULL, NULL))
		return errno;
	for (;;) {
		if (ptrace(PTRACE_CONT, helper->tid, NULL, NULL))
			return errno;
		error = wait_stop(helper->tid, &status);
		if (error)
			return error;
		if (IS_EVENT_STOP(status))
			return 0;
		helper->stop_seen = true;
	}
}

/* Has the thread execute one system call, from an event stop to the next. */
static int execute(struct helper *helper, long number, uint64_t argument, long *result)
{
	struct user_regs_struct registers = helper->saved;
	int error;

	registers.rax = (uint64_t)number;
	registers.rdi = argument;
	registers.orig_rax = (uint64_t)-1; /* nothing here for the kernel to restart */
	registers.rip = helper->syscall_address;
	if (ptrace(PTRACE_SETREGS, helper->tid, NULL, &registers))
		return errno;
	error = run_to_syscall_stop(helper);
	if (!error)
		error = run_to_syscall_stop(helper);
	if (error)
		return error;
	if (ptrace(PTRACE_GETREGS, helper->tid, NULL, &registers))
		return errno;
	*result = (long)registers.rax;
	return run_to_event_stop(helper);
}

static int prepare(struct helper *helper)
{
	long word;

	if (ptrace(PTRACE_GETREGS, helper->tid, NULL, &helper->saved))
		return errno;
	/* 64-bit user code only: a 32-bit thread would take our number for another system call. */
	if (helper->saved.cs != 0x33)
		return ENOTSUP;
	errno = 0;
	word = ptrace(PTRACE_PEEKTEXT, helper->tid, (void *)helper->syscall_address, NULL);
	if (errno)
		return errno;
	if ((word & 0xffff) != 0x050f)
		return EILSEQ;
	if (ptrace(PTRACE_GETSIGMASK, helper->tid, (void *)sizeof(helper->saved_mask),
		   &helper->saved_mask))
		return errno;
	return 0;
}

static int block_signals(struct helper *helper)
{
	uint64_t all = ~UINT64_C(0);

	return ptrace(PTRACE_SETSIGMASK, helper->tid, (void *)sizeof(all), &all) ? errno : 0;
}

static int restore(struct helper *helper)
{
	int error = 0;

	if (ptrace(PTRACE_SETREGS, helper->tid, NULL, &helper->saved))
		error = errno;
	if (ptrace(PTRACE_SETSIGMASK, helper->tid, (void *)sizeof(helper->saved_mask),
		   &helper->saved_mask) && !error)
		error = errno;
	return error;
}

/* With the thread at its first event stop: all between here and "restore" is the dangerous part. */
static void make_and_take(struct helper *helper)
{
	struct pf_injection *result = &helper->result;
	long remote, closed;

	result->step = PF_STEP_CREATE;
	result->error = execute(helper, SYS_userfaultfd,
				O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY_FLAG, &remote);
	if (result->error) {
		result->thread_lost = 1;
		return;
	}
	if (remote < 0) {
		result->error = (int)-remote;
		return;
	}
	result->uffd = (int)syscall(SYS_PIDFD_GETFD, helper->pidfd, (int)remote, 0);
	if (result->uffd < 0) {
		result->step = PF_STEP_TAKE;
		result->error = errno;
	}
	if (execute(helper, SYS_close, (uint64_t)remote, &closed)) {
		result->step = PF_STEP_CLOSE;
		result->error = ESRCH;
		result->thread_lost = 1;
	} else if (closed < 0 && !result->error) {
		result->step = PF_STEP_CLOSE;
		result->error = (int)-closed;
	}
}

static void inject(struct helper *helper)
{
	struct pf_injection *result = &helper->result;
	int64_t stopped_at;
	int error;

	result->step = PF_STEP_START;
	helper->pidfd = (int)syscall(SYS_PIDFD_OPEN, helper->pid, 0);
	if (helper->pidfd < 0) {
		result->error = errno;
		return;
	}
	result->step = PF_STEP_ATTACH;
	if (ptrace(PTRACE_SEIZE, helper->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD)) {
		result->error = errno;
		return;
	}
	result->step = PF_STEP_STOP;
	result->error = ptrace(PTRACE_INTERRUPT, helper->tid, NULL, NULL) ? errno : 0;
	if (!result->error)
		result->error = wait_first_stop(helper);
	if (result->error)
		return; /* our exit detaches */
	stopped_at = now_ns();
	result->step = PF_STEP_PREPARE;
	result->error = prepare(helper);
	if (!result->error)
		result->error = block_signals(helper);
	if (!result->error) {
		make_and_take(helper);
		error = result->thread_lost ? 0 : restore(helper);
		if (error) {
			result->step = PF_STEP_RESTORE;
			result->error = error;
			result->thread_lost = 1;
		}
	}
	if (helper->stop_seen)
		syscall(SYS_tgkill, helper->pid, helper->tid, SIGSTOP);
	ptrace(PTRACE_DETACH, helper->tid, NULL, NULL);
	result->stopped_ns = now_ns() - stopped_at;
	if (!result->error)
		result->step = PF_STEP_DONE;
}

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

/* Forks the helper with all signals blocked, so that it is never without that protection. */
static int start_helper(struct helper *helper, int ours, int theirs)
{
	sigset_t all, before;
	int child;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	/* _Fork runs no handlers of other libraries (glibc 2.34). */
	child = _Fork();
	if (!child) {
		close(ours);
		inject(helper);
		report(theirs, &helper->result);
		_exit(0);
	}
	if (child < 0)
		child = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return child;
}

int pf_inject_userfaultfd(int pid, int tid, uint64_t syscall_address, struct pf_injection *out)
{
	struct helper helper = {.pid = pid, .tid = tid, .syscall_address = syscall_address,
				.pidfd = -1, .result = {.uffd = -1}};
	int sockets[2], child, error;

	*out = helper.result;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) {
		out->error = errno;
		return out->error;
	}
	child = start_helper(&helper, sockets[0], sockets[1]);
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
