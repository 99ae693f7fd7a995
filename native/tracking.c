/*
 * Pages written since the last look: userfaultfd write protection in the asynchronous mode, read
 * and re-armed by PAGEMAP_SCAN. Works on another process's address space, through a userfaultfd
 * that was made there and its /proc/PID/pagemap.
 */

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Commit 2bad466cc9d9, Linux 6.4. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
/* Commit d61ea1cb0095, Linux 6.7. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* PAGEMAP_SCAN: commit 52526ca7fdb9, Linux 6.7. */
struct pf_page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct pf_pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define PF_PAGEMAP_SCAN _IOWR('f', 16, struct pf_pm_scan_arg)
#define PF_PM_SCAN_WP_MATCHING (1 << 0)
#define PF_PM_SCAN_CHECK_WPASYNC (1 << 1)
#define PF_PAGE_IS_WRITTEN (1 << 1)
#define PF_PAGE_IS_PRESENT (1 << 3)

/* 24 KiB of regions on the stack: one call then covers 1024 scattered writes. */
#define SCAN_REGIONS 1024

/* Write-protected in one call; each holds the process's mmap lock, so not all of RAM at once. */
#define ARM_BYTES (UINT64_C(1) << 30)

int pf_uffd_open(int *out)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return errno;
	*out = fd;
	return 0;
}

int pf_uffd_enable(int uffd, uint64_t *features)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC,
	};

	if (ioctl(uffd, UFFDIO_API, &api))
		return errno;
	*features = api.features;
	return 0;
}

int pf_uffd_register(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register registration = {
		.range = {.start = start, .len = end - start},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &registration) ? errno : 0;
}

static int protect(int uffd, uint64_t start, uint64_t end)
{
	while (start < end) {
		uint64_t length = end - start < ARM_BYTES ? end - start : ARM_BYTES;
		struct uffdio_writeprotect protection = {
			.range = {.start = start, .len = length},
			.mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};

		if (ioctl(uffd, UFFDIO_WRITEPROTECT, &protection)) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			return errno;
		}
		start += length;
	}
	return 0;
}

int pf_uffd_protect(int uffd, uint64_t start, uint64_t end, const struct pf_pageset *but,
		    uint64_t first_page)
{
	uint64_t pages = (end - start) / PF_PAGE_BYTES, page = 0, left_out;
	int error = pf_pageset_count_range(but, first_page, pages, &left_out);

	while (!error && page < pages) {
		struct pf_run run = {first_page + pages, 0};

		/* ENOENT, a run beyond the range: all of the rest. */
		pf_pageset_next(but, first_page + page, &run);
		if (run.start > first_page + pages)
			run.start = first_page + pages;
		error = protect(uffd, start + page * PF_PAGE_BYTES,
				start + (run.start - first_page) * PF_PAGE_BYTES);
		page = run.start - first_page + run.count;
	}
	return error;
}

int pf_uffd_disarm(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = {.start = start, .len = end - start};

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? errno : 0;
}

static int add_regions(const struct pf_page_region *regions, int length, uint64_t start,
		       struct pf_pageset *into, uint64_t first_page, uint64_t *found)
{
	for (int i = 0; i < length; i++) {
		uint64_t page = first_page + (regions[i].start - start) / PF_PAGE_BYTES;
		uint64_t count = (regions[i].end - regions[i].start) / PF_PAGE_BYTES;
		int error = pf_pageset_add(into, page, count);

		if (error)
			return error;
		*found += count;
	}
	return 0;
}

static int scan(int pagemap_fd, uint64_t start, uint64_t end, uint64_t flags, uint64_t category,
		struct pf_pageset *into, uint64_t first_page, uint64_t *found)
{
	struct pf_page_region regions[SCAN_REGIONS];
	struct pf_pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = start,
		.end = end,
		.vec = (uintptr_t)regions,
		.vec_len = SCAN_REGIONS,
		.category_mask = category,
		.return_mask = category,
	};
	uint64_t total = 0, already;
	int error;

	/* Refuse what would not fit before any mark is cleared: a cleared mark is a debt. */
	error = pf_pageset_count_range(into, first_page, (end - start) / PF_PAGE_BYTES, &already);
	if (error)
		return error;
	while (arg.start < end) {
		int length = ioctl(pagemap_fd, PF_PAGEMAP_SCAN, &arg);

		if (length < 0)
			return errno;
		error = add_regions(regions, length, start, into, first_page, &total);
		if (error)
			return error;
		if (arg.walk_end <= arg.start)
			return EIO;
		arg.start = arg.walk_end;
	}
	*found = total;
	return 0;
}

int pf_scan_written(int pagemap_fd, uint64_t start, uint64_t end, struct pf_pageset *into,
		    uint64_t first_page, uint64_t *found)
{
	return scan(pagemap_fd, start, end, PF_PM_SCAN_WP_MATCHING | PF_PM_SCAN_CHECK_WPASYNC,
		    PF_PAGE_IS_WRITTEN, into, first_page, found);
}

int pf_scan_present(int pagemap_fd, uint64_t start, uint64_t end, struct pf_pageset *into,
		    uint64_t first_page, uint64_t *found)
{
	return scan(pagemap_fd, start, end, 0, PF_PAGE_IS_PRESENT, into, first_page, found);
}
