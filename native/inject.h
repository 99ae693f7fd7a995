/* Between the injection itself (inject.c) and the process that does it (helper.c). */

#ifndef PAGEFERRY_INJECT_H
#define PAGEFERRY_INJECT_H

#include "native.h"

#include <sys/user.h>

/* One injection: pid, tid, syscall_address and result (zero but for uffd = -1) are given. */
struct injector {
	int pid;
	int tid;
	uint64_t syscall_address;
	int pidfd;
	struct user_regs_struct saved;
	uint64_t saved_mask;
	bool stop_seen; /* a SIGSTOP arrived meanwhile, and is owed to the thread */
	struct pf_injection result;
};

/*
 * Does it all and fills "result". Only async-signal-safe functions; to be called in a process of
 * its own with all signals blocked, which ends right afterwards.
 */
void pf_inject(struct injector *injector);

#endif
