/*
 * The VM's first process: makes a root of the host's, shared read-only, and runs a script in it.
 *
 * Loads the modules in /modules in the order of their names. Without a /script it then hands over to
 * the init on the first disk. With one it mounts the virtiofs share "host", lays an overlay in memory
 * over it, and has the host's shell run the text of /script there, with the serial port as its input
 * and output. Says "VM ENDED status=N" when the script has ended, or "VM ERROR REASON" when it does
 * not come that far, and switches the VM off.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define SCRIPT_SIZE 65536

static void off(void)
{
	/* What was written to the serial port is out when it has been drained. */
	tcdrain(1);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void fail(const char *what)
{
	printf("VM ERROR %s: %s\n", what, strerror(errno));
	fflush(stdout);
	off();
}

static void mount_one(const char *source, const char *where, const char *kind, unsigned long flags,
		      const char *options)
{
	if (mkdir(where, 0755) && errno != EEXIST)
		fail(where);
	if (mount(source, where, kind, flags, options) && errno != EBUSY)
		fail(where);
}

static void open_port(void)
{
	struct termios settings;
	int port = open("/dev/ttyS0", O_RDWR | O_NOCTTY);

	if (port < 0)
		off();
	tcgetattr(port, &settings);
	cfmakeraw(&settings);
	tcsetattr(port, TCSANOW, &settings);
	for (int fd = 0; fd < 3; fd++)
		dup2(port, fd);
	if (port > 2)
		close(port);
}

static void load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[300];
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fail(path);
		close(fd);
	}
}

static void make_root(void)
{
	mount_one("host", "/host", "virtiofs", MS_RDONLY, NULL);
	mount_one("over", "/over", "tmpfs", 0, NULL);
	if (mkdir("/over/upper", 0755) || mkdir("/over/work", 0755))
		fail("/over");
	mount_one("root", "/root", "overlay", 0,
		  "lowerdir=/host,upperdir=/over/upper,workdir=/over/work");
	if (chroot("/root") || chdir("/"))
		fail("chroot");
}

/* As switch_root(8) does. What the initramfs holds is freed with its last user, this process. */
static void hand_over(void)
{
	mount_one("/dev/vda", "/root", "ext4", 0, NULL);
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		fail("the first disk");
	execl("/sbin/init", "init", NULL);
	fail("/sbin/init");
}

static void read_script(char *text)
{
	int fd = open("/script", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, SCRIPT_SIZE - 1);

	if (got <= 0)
		fail("/script");
	text[got] = 0;
	close(fd);
}

/* Orphans of the script's become ours: all are waited for. */
static int wait_for(pid_t child)
{
	for (;;) {
		int status;
		pid_t ended = wait(&status);

		if (ended < 0 && errno != EINTR)
			fail("wait");
		if (ended == child)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
}

int main(void)
{
	static char script[SCRIPT_SIZE];
	pid_t child;
	int status;

	mount_one("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	open_port();
	load_modules();
	if (access("/script", F_OK))
		hand_over();
	read_script(script);
	make_root();
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		setsid();
		execl("/bin/sh", "sh", "-c", script, NULL);
		fail("/bin/sh");
	}
	status = wait_for(child);
	printf("\nVM ENDED status=%d\n", status);
	fflush(stdout);
	off();
}
