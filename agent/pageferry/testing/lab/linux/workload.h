/* What the parts of the Linux guest's init share. The protocol is described in init.c. */
#ifndef PAGEFERRY_WORKLOAD_H
#define PAGEFERRY_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define SECTOR 512u
#define MIB (1024u * 1024u)
#define MAX_BAD_LINES 8

/*
 * What disks and memory are filled with, over and over: whose it is, and where or when it was
 * written. So every 16 bytes say whether they are the right ones, and what they are if not.
 */
struct stamp {
	uint64_t salt, number;
};

/* One line to the host, whole even when threads speak at the same time. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The number after "name=" in a command, or `otherwise`. */
uint64_t parameter(const char *command, const char *name, uint64_t otherwise);

uint64_t now_us(void);

/* disks.c: find virtio disks, read them through the page cache, check what the cache holds. */
int disks_find(void);
void disks_describe(char *text, size_t size);
void disks_read(const char *command);
void disks_stop(void);
void disks_check(void);
void disks_report(void);

/* memory.c: rewrite memory, generation by generation, and verify it. */
bool memory_write(const char *command);
void memory_stop(void);
void memory_verify(void);
void memory_report(void);

/* records.c: write numbered records to a disk, past the cache, and read them again. */
bool records_write(const char *command);
void records_verify(void);
void records_report(void);

/* talk.c: say numbered words on the network, each until it is echoed. */
bool talk_start(const char *command);
void talk_report(void);

#endif
