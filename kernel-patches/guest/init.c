/*
 * The first process of a test guest: it mounts what the tests need, makes swap of the RAM disks,
 * runs each program named in /tests, one a line, and says how it ended.
 *
 * The report goes to the console and ends with a line of its own, since QEMU's exit status tells
 * nothing. Programs run with swap on two areas of equal priority, so that both swap types are used.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define MAX_ARGUMENTS 16
/* include/linux/swap.h: priorities are in the low bits of the flags. */
#define SAME_PRIORITY (SWAP_FLAG_PREFER | 5)

static void must(int failed, const char *what)
{
	if (!failed)
		return;
	perror(what);
	printf("GUEST FAILED: %s\n", what);
	fflush(stdout);
	reboot(RB_AUTOBOOT);
}

static void mount_at(const char *type, const char *path)
{
	mkdir(path, 0755);
	must(mount(type, path, type, 0, NULL), path);
}

/*
 * Say so when the kernel checks its locks, and does so still: at the first fault it stops, for good.
 */
static void report_lock_checks(void)
{
	FILE *file = fopen("/proc/lockdep_stats", "r");
	char line[256];
	int on = 0;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " debug_locks: %d", &on) == 1 && on)
			printf("GUEST CHECKS LOCKS\n");
	if (file)
		fclose(file);
}

/* What mkswap(8) writes: include/linux/swap.h, union swap_header, version 1. */
static void make_swap(const char *path)
{
	uint8_t header[PAGE_BYTES] = {0};
	int fd = open(path, O_RDWR);
	off_t bytes = lseek(fd, 0, SEEK_END);
	uint32_t version = 1, last_page = (uint32_t)(bytes / PAGE_BYTES - 1);

	must(fd < 0 || bytes <= PAGE_BYTES, path);
	memcpy(header + 1024, &version, sizeof(version));
	memcpy(header + 1028, &last_page, sizeof(last_page));
	memcpy(header + PAGE_BYTES - 10, "SWAPSPACE2", 10);
	must(pwrite(fd, header, sizeof(header), 0) != sizeof(header), path);
	fsync(fd);
	close(fd);
	must(swapon(path, SAME_PRIORITY), path);
}

/* A line is: variables for all that follows, a program, its arguments. */
static void run(char *line)
{
	char *arguments[MAX_ARGUMENTS + 1];
	int count = 0, status = 0;
	pid_t child;

	for (char *word = strtok(line, " "); word && count < MAX_ARGUMENTS;
	     word = strtok(NULL, " ")) {
		if (!count && strchr(word, '='))
			putenv(strdup(word));
		else
			arguments[count++] = word;
	}
	arguments[count] = NULL;
	if (!count)
		return;
	printf("GUEST RUNS: %s\n", arguments[0]);
	fflush(stdout);
	child = fork();
	if (!child) {
		execv(arguments[0], arguments);
		perror(arguments[0]);
		_exit(127);
	}
	waitpid(child, &status, 0);
	printf("GUEST RAN: %s: %s %d\n", arguments[0], WIFEXITED(status) ? "exit" : "signal",
	       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	fflush(stdout);
}

int main(void)
{
	char line[4096];
	FILE *tests;

	setenv("PATH", "/bin:/usr/bin", 1);
	setenv("HOME", "/", 1);
	/* Programs that are not root must find their way, too. */
	chmod("/", 0755);
	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("tracefs", "/sys/kernel/tracing");
	mount_at("tmpfs", "/tmp");
	mount_at("tmpfs", "/dev/shm");
	if (!access("/dev/nullb0", F_OK)) {
		make_swap("/dev/nullb0");
		make_swap("/dev/nullb1");
	} else {
		make_swap("/dev/ram0");
		make_swap("/dev/ram1");
	}
	tests = fopen("/tests", "r");
	must(!tests, "/tests");
	while (fgets(line, sizeof(line), tests)) {
		line[strcspn(line, "\n")] = '\0';
		run(line);
	}
	report_lock_checks();
	printf("GUEST DONE\n");
	fflush(stdout);
	sync();
	reboot(RB_AUTOBOOT);
	return 1;
}
