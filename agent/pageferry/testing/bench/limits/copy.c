/*
 * The limit of copying: shared memory over TCP connections into fresh shared memory, nothing else.
 *
 * Usage: copy MIB CONNECTIONS HOW. HOW is "pwrite" (receive into a buffer of 256 KiB, then pwrite:
 * no fault for each page) or "recv" (receive right into the mapping). Prints {"seconds": S}: from the
 * first byte sent until the receiver has said that the last one is in its place.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024ul * 1024)
#define SLICE (1 * MIB)
#define BUFFER (256 * 1024ul)
#define MAX_CONNECTIONS 64

struct part {
	int socket, file;
	uint8_t *memory; /* NULL: by pwrite */
	size_t offset, length;
};

static int memory_file(size_t length)
{
	int file = memfd_create("copy", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, (off_t)length))
		err(1, "memfd");
	return file;
}

static uint8_t *map(int file, size_t length)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	return memory;
}

static void *send_part(void *argument)
{
	struct part *part = argument;
	uint8_t ack;

	for (size_t done = 0; done < part->length;) {
		size_t want = part->length - done < SLICE ? part->length - done : SLICE;
		ssize_t sent = send(part->socket, part->memory + part->offset + done, want, 0);

		if (sent < 0)
			err(1, "send");
		done += (size_t)sent;
	}
	if (recv(part->socket, &ack, 1, MSG_WAITALL) != 1)
		err(1, "no acknowledgement");
	return NULL;
}

static void *receive_part(void *argument)
{
	struct part *part = argument;
	uint8_t *buffer = part->memory ? NULL : malloc(BUFFER);

	for (size_t done = 0; done < part->length;) {
		size_t most = part->memory ? SLICE : BUFFER;
		size_t want = part->length - done < most ? part->length - done : most;
		uint8_t *into = part->memory ? part->memory + part->offset + done : buffer;
		ssize_t got = recv(part->socket, into, want, MSG_WAITALL);

		if (got != (ssize_t)want)
			err(1, "recv");
		if (buffer && pwrite(part->file, buffer, want, (off_t)(part->offset + done)) != got)
			err(1, "pwrite");
		done += want;
	}
	if (send(part->socket, "k", 1, 0) != 1)
		err(1, "send");
	free(buffer);
	return NULL;
}

static void run(struct part *parts, int connections, void *(*work)(void *))
{
	pthread_t threads[MAX_CONNECTIONS];

	for (int i = 0; i < connections; i++)
		if (pthread_create(&threads[i], NULL, work, &parts[i]))
			errx(1, "pthread_create");
	for (int i = 0; i < connections; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	struct part parts[MAX_CONNECTIONS] = {0};
	struct timespec begin, end;
	int status;

	if (argc != 4)
		errx(2, "usage: copy MIB CONNECTIONS pwrite|recv");
	size_t length = strtoul(argv[1], NULL, 10) * MIB;
	int connections = atoi(argv[2]);
	int by_pwrite = !strcmp(argv[3], "pwrite");
	if (!length || connections < 1 || connections > MAX_CONNECTIONS)
		errx(2, "bad size or number of connections");
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (listener < 0 || bind(listener, (void *)&address, size) || listen(listener, MAX_CONNECTIONS) ||
	    getsockname(listener, (void *)&address, &size))
		err(1, "listen");
	for (int i = 0; i < connections; i++) {
		parts[i].offset = length / (size_t)connections * (size_t)i / 4096 * 4096;
		if (i)
			parts[i - 1].length = parts[i].offset - parts[i - 1].offset;
	}
	parts[connections - 1].length = length - parts[connections - 1].offset;
	pid_t child = fork();
	if (child < 0)
		err(1, "fork");
	int file = memory_file(length);
	uint8_t *memory = child || !by_pwrite ? map(file, length) : NULL;
	for (int i = 0; i < connections; i++) {
		parts[i].memory = memory;
		parts[i].file = file;
	}
	if (!child) {
		for (int i = 0; i < connections; i++)
			if ((parts[i].socket = accept(listener, NULL, NULL)) < 0)
				err(1, "accept");
		run(parts, connections, receive_part);
		return 0;
	}
	for (size_t i = 0; i < length / 8; i++)
		((uint64_t *)memory)[i] = i * 0x9e3779b97f4a7c15ul + 1;
	for (int i = 0; i < connections; i++) {
		parts[i].socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (parts[i].socket < 0 || connect(parts[i].socket, (void *)&address, size))
			err(1, "connect");
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	run(parts, connections, send_part);
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (waitpid(child, &status, 0) < 0 || status)
		errx(1, "the receiver failed");
	printf("{\"seconds\": %.6f}\n",
	       (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
	return 0;
}
