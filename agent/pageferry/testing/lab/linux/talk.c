/*
 * Numbered words on the network: Ethernet frames without any protocol above, each said again until
 * its echo comes. So a listener hears 1, 2, 3, ... and never a smaller number after a larger one.
 */
#include "workload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define WORD_TYPE 0x88b5 /* both for local experiments (IEEE 802) */
#define ECHO_TYPE 0x88b6
#define SAY_AGAIN_MS 100
#define STAMPS 32u
#define WORD_SALT 0x64726f77u

struct frame {
	unsigned char to[6], from[6];
	uint16_t type;
	struct stamp stamps[STAMPS];
} __attribute__((packed));

static int wire = -1;
static uint64_t said, repeated, bad, pace_us;
static pthread_t talker;

static int open_wire(void)
{
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ECHO_TYPE));
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ECHO_TYPE)};
	struct ifreq request = {.ifr_name = "eth0"};

	if (fd < 0)
		return -1;
	if (ioctl(fd, SIOCGIFINDEX, &request))
		goto failed;
	address.sll_ifindex = request.ifr_ifindex;
	if (ioctl(fd, SIOCGIFFLAGS, &request))
		goto failed;
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) ||
	    bind(fd, (struct sockaddr *)&address, sizeof address))
		goto failed;
	return fd;
failed:
	say("B eth0: %s", strerror(errno));
	close(fd);
	return -1;
}

static void make(struct frame *frame, uint64_t number)
{
	memset(frame->to, 0xff, sizeof frame->to);
	memcpy(frame->from, "\x02\0\0\0\0\x01", sizeof frame->from);
	frame->type = htons(WORD_TYPE);
	for (size_t i = 0; i < STAMPS; i++)
		frame->stamps[i] = (struct stamp){WORD_SALT, number};
}

/* Whether the echo of `sent` comes in time. Late echoes of earlier words are passed over. */
static bool hear_echo(const struct frame *sent)
{
	struct pollfd ready = {.fd = wire, .events = POLLIN};
	uint64_t until_us = now_us() + SAY_AGAIN_MS * 1000u;
	struct frame got;

	for (uint64_t now; (now = now_us()) < until_us;) {
		if (poll(&ready, 1, (int)((until_us - now) / 1000u) + 1) != 1)
			continue;
		if (recv(wire, &got, sizeof got, 0) != sizeof got ||
		    got.stamps[0].number < sent->stamps[0].number)
			continue;
		if (!memcmp(got.stamps, sent->stamps, sizeof got.stamps))
			return true;
		if (bad++ < MAX_BAD_LINES)
			say("B word=%llu came back as %llu",
			    (unsigned long long)sent->stamps[0].number,
			    (unsigned long long)got.stamps[0].number);
	}
	return false;
}

static void *talk_without_end(void *unused)
{
	struct frame frame;

	for (;;) {
		make(&frame, said + 1);
		for (bool first = true;; first = false) {
			repeated += !first;
			/* ENETDOWN, ENOBUFS: said again, like one that was lost. */
			if (send(wire, &frame, sizeof frame, 0) < 0)
				usleep(SAY_AGAIN_MS * 1000u);
			else if (hear_echo(&frame))
				break;
		}
		said++;
		usleep((useconds_t)pace_us);
	}
	return unused;
}

bool talk_start(const char *command)
{
	if (wire >= 0)
		return false;
	wire = open_wire();
	pace_us = parameter(command, "pace_us", 20000);
	return wire >= 0 && !pthread_create(&talker, NULL, talk_without_end, NULL);
}

void talk_report(void)
{
	if (wire >= 0)
		say("S words=%llu repeated=%llu bad=%llu", (unsigned long long)said,
		    (unsigned long long)repeated, (unsigned long long)bad);
}
