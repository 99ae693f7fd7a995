/*
 * The Linux guest's init and only program: loads modules, then obeys commands over the serial port.
 *
 * Says, one line each:
 *   READY release=R memory_mib=N disks=NAME:BLOCKS,...   NAME is the virtio serial, blocks of 4 KiB
 *   OK COMMAND | ERROR REASON                            the answer to each command
 *   S disk=NAME blocks=N bad=N passes=N longest_us=N     every 200 ms while disks are read: blocks
 *                                                        read and found bad so far, longest read
 *                                                        since the last such line
 *   S memory=PAGES generation=N touches=N                likewise while memory is written
 *   S records=N bad=N                                    likewise while records are written: the
 *                                                        last one that is on the disk
 *   S words=N repeated=N bad=N                           likewise on the network: words echoed,
 *                                                        sent again, and echoed wrong
 *   B ...                                                the first bad blocks or pages, in words
 *   CHECKED disk=NAME cached=N bad=N                     for `check`, one for each disk
 *   VERIFIED pages=N bad=N generation=N                  for `verify`
 *   RECORDS checked=N bad=N last=N                       for `recall`
 * Commands, one line each, with name=value parameters:
 *   read [threads=8] [chunk_kib=128] [keep_mib=64]   read all disks without end through the page
 *          cache, in a scattered order, `threads` readers a disk; what was read `keep_mib` ago is
 *          dropped from the cache. The stamp of each sector is checked at once.
 *   stop                  end the reading, after the reads under way
 *   check                 check every byte of the disks that is in the page cache, without reading
 *   drop                  drop the page cache
 *   write [mib=32] [pace=16]   rewrite that much memory without end, `pace` pages a millisecond
 *   verify                verify all of that memory, to the byte
 *   still                 end the writing
 *   record [slots=256] [pace_us=2000]   write records of 4 KiB to the first disk that can be
 *          written, without end, over and over into so many places, and read an older one after each
 *   recall                read all of them and compare, to the byte
 *   talk [pace_us=20000]  say numbered words on eth0 without end, each until its echo comes
 *   poweroff
 */
#include "workload.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define REPORT_US 200000

static int port = -1;
static pthread_mutex_t port_lock = PTHREAD_MUTEX_INITIALIZER;

void say(const char *format, ...)
{
	char line[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	pthread_mutex_lock(&port_lock);
	for (int done = 0; done < length;) {
		ssize_t wrote = write(port, line + done, (size_t)(length - done));

		if (wrote < 0 && errno != EINTR)
			break;
		done += wrote > 0 ? (int)wrote : 0;
	}
	pthread_mutex_unlock(&port_lock);
}

uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t parameter(const char *command, const char *name, uint64_t otherwise)
{
	size_t length = strlen(name);

	for (const char *at = strchr(command, ' '); at; at = strchr(at + 1, ' '))
		if (!strncmp(at + 1, name, length) && at[1 + length] == '=')
			return strtoull(at + length + 2, NULL, 10);
	return otherwise;
}

static void mount_one(const char *kind, const char *where)
{
	mkdir(where, 0755);
	if (mount(kind, where, kind, 0, NULL) && errno != EBUSY)
		say("ERROR cannot mount %s: %s", where, strerror(errno));
}

static void open_port(void)
{
	struct termios settings;

	port = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (port < 0)
		return;
	tcgetattr(port, &settings);
	cfmakeraw(&settings);
	/* Signals and echo are off; only the line discipline's buffering stays. */
	tcsetattr(port, TCSANOW, &settings);
}

static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
		say("ERROR module %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* The host has named them so that each comes after those it needs. */
static void load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[300];

		if (names[i]->d_name[0] != '.') {
			snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
			load_module(path);
		}
		free(names[i]);
	}
	if (count >= 0)
		free(names);
}

static void drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "3", 1) != 1)
		say("ERROR drop_caches: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void *report_without_end(void *unused)
{
	for (;;) {
		usleep(REPORT_US);
		disks_report();
		memory_report();
		records_report();
		talk_report();
	}
	return unused;
}

static bool is(const char *command, const char *verb)
{
	size_t length = strcspn(command, " ");

	return length == strlen(verb) && !strncmp(command, verb, length);
}

static bool obey(const char *command)
{
	if (is(command, "read"))
		disks_read(command);
	else if (is(command, "stop"))
		disks_stop();
	else if (is(command, "check"))
		disks_check();
	else if (is(command, "drop"))
		drop_caches();
	else if (is(command, "write"))
		return memory_write(command);
	else if (is(command, "verify"))
		memory_verify();
	else if (is(command, "still"))
		memory_stop();
	else if (is(command, "record"))
		return records_write(command);
	else if (is(command, "recall"))
		records_verify();
	else if (is(command, "talk"))
		return talk_start(command);
	else if (is(command, "poweroff"))
		reboot(RB_POWER_OFF);
	else
		return false;
	return true;
}

/* One line of the host's, without its end. False when the port is gone. */
static bool hear(char *line, size_t size)
{
	size_t length = 0;
	char next;

	for (;;) {
		ssize_t got = read(port, &next, 1);

		if (got < 0 && errno == EINTR)
			continue;
		if (got != 1)
			return false;
		if (next == '\n') {
			line[length] = 0;
			return true;
		}
		if (length < size - 1 && next != '\r')
			line[length++] = next;
	}
}

int main(void)
{
	struct utsname name;
	struct sysinfo memory;
	pthread_t reporter;
	char line[256], disks[200];

	mount_one("devtmpfs", "/dev");
	open_port();
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	load_modules();
	disks_find();
	disks_describe(disks, sizeof disks);
	uname(&name);
	sysinfo(&memory);
	pthread_create(&reporter, NULL, report_without_end, NULL);
	say("READY release=%s memory_mib=%lu disks=%s", name.release,
	    (unsigned long)(memory.totalram * memory.mem_unit / MIB), disks);
	while (hear(line, sizeof line))
		if (line[0])
			say("%s %s", obey(line) ? "OK" : "ERROR", line);
	say("ERROR the serial port is gone");
	for (;;)
		pause();
}
