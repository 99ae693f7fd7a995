/*
 * The helper process, against a thread that is blocked in a system call with a timeout and one that
 * is hit by signals all the while. Skipped (with a word) where ptrace is not permitted.
 */

#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

/* Sleeps 300 ms in one call, which must neither fail nor return early, then ends with 0. */
static int sleep_whole(void)
{
	struct timespec before, after;
	const struct timespec length = {.tv_nsec = 300 * 1000 * 1000};
	int64_t passed_ms;

	clock_gettime(CLOCK_MONOTONIC, &before);
	if (nanosleep(&length, NULL))
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &after);
	passed_ms = (after.tv_sec - before.tv_sec) * 1000 +
		    (after.tv_nsec - before.tv_nsec) / 1000000;
	return passed_ms < 299 ? 2 : 0;
}

/* Reads from a pipe while signals come, restarting; ends with 0 if every byte came. */
static int read_whole(int fd)
{
	struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
	char byte;

	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < 20; i++)
		if (read(fd, &byte, 1) != 1 || byte != (char)i)
			return 1;
	return signals ? 0 : 2;
}

static uint64_t blocked_at(int pid)
{
	char path[64], text[256];
	unsigned long long address = 0;
	char *last;
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (length <= 0 || text[0] < '0' || text[0] > '9')
		return 0;
	text[length] = 0;
	last = strrchr(text, ' ');
	if (!last)
		return 0;
	address = strtoull(last, NULL, 16);
	return address - 2;
}

static uint64_t wait_blocked(int pid)
{
	const struct timespec pause = {.tv_nsec = 1000 * 1000};
	uint64_t address;

	for (int i = 0; i < 1000; i++) {
		address = blocked_at(pid);
		if (address)
			return address;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int child_status(int pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static bool permitted(int pid, uint64_t address)
{
	struct pf_injection result;
	int error = pf_inject_userfaultfd(pid, pid, address, &result);

	if (error == EPERM || error == ENOSYS) {
		printf("skipped: %s\n", strerror(error));
		return false;
	}
	CHECK(!error && result.step == PF_STEP_DONE && result.uffd >= 0 && result.stopped_ns > 0);
	close(result.uffd);
	return true;
}

static void test_sleep_goes_on(void)
{
	int pid = fork();

	if (!pid)
		_exit(sleep_whole());
	permitted(pid, wait_blocked(pid));
	CHECK(!child_status(pid));
}

static void send_signals_forever(int pid)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!kill(pid, SIGUSR1))
		;
	_exit(0);
}

/* A storm of them, so that some come while the thread is not itself. */
static void test_signals_are_delivered_and_nothing_else_changes(void)
{
	int pipe_fds[2], pid, storm;
	struct pf_injection result;
	uint64_t address;

	CHECK(!pipe(pipe_fds));
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read_whole(pipe_fds[0]));
	}
	address = wait_blocked(pid);
	storm = fork();
	if (!storm)
		send_signals_forever(pid);
	for (int i = 0; i < 400; i++) {
		char byte = (char)(i / 20);

		if (!pf_inject_userfaultfd(pid, pid, address, &result))
			close(result.uffd);
		else
			CHECK(result.error == EPERM || result.error == ENOSYS);
		if (i % 20 == 19)
			CHECK(write(pipe_fds[1], &byte, 1) == 1);
	}
	CHECK(!kill(storm, SIGKILL) && child_status(storm) == 1000 + SIGKILL);
	CHECK(!child_status(pid));
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/* True once the process is in that state, within a second. */
static bool becomes(int pid, char state)
{
	const struct timespec pause = {.tv_nsec = 1000 * 1000};
	char path[64], text[256];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (int i = 0; i < 1000; i++) {
		FILE *file = fopen(path, "r");

		CHECK(file && fgets(text, sizeof(text), file));
		fclose(file);
		if (strrchr(text, ')')[2] == state)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

static void test_stopped_process_stays_stopped(void)
{
	struct pf_injection result;
	uint64_t address;
	int pid = fork(), status;

	if (!pid) {
		pause();
		_exit(3);
	}
	address = wait_blocked(pid);
	CHECK(!kill(pid, SIGSTOP) && waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	if (!pf_inject_userfaultfd(pid, pid, address, &result)) {
		close(result.uffd);
		CHECK(becomes(pid, 'T'));
		CHECK(!kill(pid, SIGCONT) && becomes(pid, 'S'));
	}
	CHECK(!kill(pid, SIGKILL) && child_status(pid) == 1000 + SIGKILL);
}

static void test_wrong_address_changes_nothing(void)
{
	static const char not_code[16] __attribute__((aligned(8)));
	struct pf_injection result;
	int pid = fork();

	if (!pid)
		_exit(sleep_whole());
	wait_blocked(pid);
	if (pf_inject_userfaultfd(pid, pid, (uintptr_t)not_code, &result) != EPERM) {
		CHECK(result.error == EILSEQ && result.step == PF_STEP_PREPARE);
		CHECK(result.uffd == -1 && !result.thread_lost);
	}
	CHECK(!child_status(pid));
}

static void test_process_that_is_gone(void)
{
	struct pf_injection result;
	int pid = fork();

	if (!pid)
		_exit(0);
	CHECK(!child_status(pid));
	CHECK(pf_inject_userfaultfd(pid, pid, 4096, &result) == ESRCH);
}

int main(void)
{
	alarm(60); /* a thread that was left stopped would have us wait for ever */
	test_sleep_goes_on();
	test_signals_are_delivered_and_nothing_else_changes();
	test_stopped_process_stays_stopped();
	test_wrong_address_changes_nothing();
	test_process_that_is_gone();
	return 0;
}
