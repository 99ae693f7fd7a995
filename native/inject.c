/*
 * Making a userfaultfd in another process, by having one of its threads execute the system call.
 *
 * A tracer that dies between the first change of the thread's registers and their restoration kills
 * the process: the thread would go on with ours. So the work is done by a helper process (helper.c)
 * which blocks all signals, allocates nothing, prepares everything beforehand and waits for nobody
 * in between. Its parent may be interrupted or killed at any time; only SIGKILL to the helper
 * itself within those 0.1 ms does harm.
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

#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SYS_PIDFD_OPEN 434   /* Linux 5.3 */
#define SYS_PIDFD_GETFD 438  /* Linux 5.6 */
#define UFFD_USER_MODE_ONLY_FLAG 1 /* Linux 5.11 */

/* How long a thread that is to be stopped may stay in an uninterruptible sleep. */
#define STOP_DEADLINE_NS (INT64_C(2000) * 1000 * 1000)
#define STOP_POLL_NS (20 * 1000)

#define SYSCALL_STOP (SIGTRAP | 0x80)
#define IS_EVENT_STOP(status) ((status) >> 16 == PTRACE_EVENT_STOP)

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
static int wait_first_stop(struct injector *injector)
{
	const struct timespec pause = {.tv_nsec = STOP_POLL_NS};
	int64_t deadline = now_ns() + STOP_DEADLINE_NS;
	int status;

	for (;;) {
		int pid = waitpid(injector->tid, &status, __WALL | WNOHANG);

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
		if (ptrace(PTRACE_CONT, injector->tid, NULL, (void *)(long)WSTOPSIG(status)))
			return errno;
	}
}

/* Resumes the thread until a system-call stop; puts off what else stops it. */
static int run_to_syscall_stop(struct injector *injector)
{
	int status, error;

	for (;;) {
		if (ptrace(PTRACE_SYSCALL, injector->tid, NULL, NULL))
			return errno;
		error = wait_stop(injector->tid, &status);
		if (error)
			return error;
		if (status >> 16 == 0 && WSTOPSIG(status) == SYSCALL_STOP)
			return 0;
		/* Signals are blocked, so this can only be SIGSTOP, or the event stop of a group stop. */
		if (!IS_EVENT_STOP(status))
			injector->stop_seen = true;
	}
}

static int run_to_event_stop(struct injector *injector)
{
	int status, error;

	if (ptrace(PTRACE_INTERRUPT, injector->tid, NULL, NULL))
		return errno;
	for (;;) {
		if (ptrace(PTRACE_CONT, injector->tid, NULL, NULL))
			return errno;
		error = wait_stop(injector->tid, &status);
		if (error)
			return error;
		if (IS_EVENT_STOP(status))
			return 0;
		injector->stop_seen = true;
	}
}

/* Has the thread execute one system call, from an event stop to the next. */
static int execute(struct injector *injector, long number, uint64_t argument, long *result)
{
	struct user_regs_struct registers = injector->saved;
	int error;

	registers.rax = (uint64_t)number;
	registers.rdi = argument;
	registers.orig_rax = (uint64_t)-1; /* nothing here for the kernel to restart */
	registers.rip = injector->syscall_address;
	if (ptrace(PTRACE_SETREGS, injector->tid, NULL, &registers))
		return errno;
	error = run_to_syscall_stop(injector);
	if (!error)
		error = run_to_syscall_stop(injector);
	if (error)
		return error;
	if (ptrace(PTRACE_GETREGS, injector->tid, NULL, &registers))
		return errno;
	*result = (long)registers.rax;
	return run_to_event_stop(injector);
}

static int prepare(struct injector *injector)
{
	long word;

	if (ptrace(PTRACE_GETREGS, injector->tid, NULL, &injector->saved))
		return errno;
	/* 64-bit user code only: a 32-bit thread would take our number for another system call. */
	if (injector->saved.cs != 0x33)
		return ENOTSUP;
	errno = 0;
	word = ptrace(PTRACE_PEEKTEXT, injector->tid, (void *)injector->syscall_address, NULL);
	if (errno)
		return errno;
	if ((word & 0xffff) != 0x050f)
		return EILSEQ;
	if (ptrace(PTRACE_GETSIGMASK, injector->tid, (void *)sizeof(injector->saved_mask),
		   &injector->saved_mask))
		return errno;
	return 0;
}

static int block_signals(struct injector *injector)
{
	uint64_t all = ~UINT64_C(0);

	return ptrace(PTRACE_SETSIGMASK, injector->tid, (void *)sizeof(all), &all) ? errno : 0;
}

static int restore(struct injector *injector)
{
	int error = 0;

	if (ptrace(PTRACE_SETREGS, injector->tid, NULL, &injector->saved))
		error = errno;
	if (ptrace(PTRACE_SETSIGMASK, injector->tid, (void *)sizeof(injector->saved_mask),
		   &injector->saved_mask) && !error)
		error = errno;
	return error;
}

/* With the thread at its first event stop: all between here and "restore" is the dangerous part. */
static void make_and_take(struct injector *injector)
{
	struct pf_injection *result = &injector->result;
	long remote, closed;

	result->step = PF_STEP_CREATE;
	result->error = execute(injector, SYS_userfaultfd,
				O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY_FLAG, &remote);
	if (result->error) {
		result->thread_lost = 1;
		return;
	}
	if (remote < 0) {
		result->error = (int)-remote;
		return;
	}
	result->uffd = (int)syscall(SYS_PIDFD_GETFD, injector->pidfd, (int)remote, 0);
	if (result->uffd < 0) {
		result->step = PF_STEP_TAKE;
		result->error = errno;
	}
	if (execute(injector, SYS_close, (uint64_t)remote, &closed)) {
		result->step = PF_STEP_CLOSE;
		result->error = ESRCH;
		result->thread_lost = 1;
	} else if (closed < 0 && !result->error) {
		result->step = PF_STEP_CLOSE;
		result->error = (int)-closed;
	}
}

void pf_inject(struct injector *injector)
{
	struct pf_injection *result = &injector->result;
	int64_t stopped_at;
	int error;

	result->step = PF_STEP_START;
	injector->pidfd = (int)syscall(SYS_PIDFD_OPEN, injector->pid, 0);
	if (injector->pidfd < 0) {
		result->error = errno;
		return;
	}
	result->step = PF_STEP_ATTACH;
	if (ptrace(PTRACE_SEIZE, injector->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD)) {
		result->error = errno;
		return;
	}
	result->step = PF_STEP_STOP;
	result->error = ptrace(PTRACE_INTERRUPT, injector->tid, NULL, NULL) ? errno : 0;
	if (!result->error)
		result->error = wait_first_stop(injector);
	if (result->error)
		return; /* our exit detaches */
	stopped_at = now_ns();
	result->step = PF_STEP_PREPARE;
	result->error = prepare(injector);
	if (!result->error)
		result->error = block_signals(injector);
	if (!result->error) {
		make_and_take(injector);
		error = result->thread_lost ? 0 : restore(injector);
		if (error) {
			result->step = PF_STEP_RESTORE;
			result->error = error;
			result->thread_lost = 1;
		}
	}
	if (injector->stop_seen)
		syscall(SYS_tgkill, injector->pid, injector->tid, SIGSTOP);
	ptrace(PTRACE_DETACH, injector->tid, NULL, NULL);
	result->stopped_ns = now_ns() - stopped_at;
	if (!result->error)
		result->step = PF_STEP_DONE;
}
