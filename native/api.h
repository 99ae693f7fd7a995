/*
 * The C extension's interface.
 *
 * This file is read twice: by the C compiler (through native.h), which checks the definitions
 * against it, and by cffi, which makes pageferry.kernel._native from it. So it holds plain
 * declarations only: no preprocessor, no inline functions.
 *
 * Conventions: functions that can fail return 0 or an errno value (never -1), and change their
 * out-parameters, which come last, only on success. Pages are 4096 bytes. "base" is the first byte
 * of a mapping, "pages" its length; runs that pass its end are refused with ERANGE before anything
 * is done.
 */

/*
 * runs.c: runs of pages, ascending, disjoint and never adjacent. Immutable once handed to Python,
 * which reads the fields: a call would let go of the GIL, and take it up again, for nothing.
 */

struct pf_run {
	uint64_t start;
	uint64_t count;
};

struct pf_runs {
	struct pf_run *items;
	size_t length;
	size_t capacity;
	uint64_t pages;
};

int pf_runs_create(struct pf_runs **out);
void pf_runs_destroy(struct pf_runs *runs);
size_t pf_runs_length(const struct pf_runs *runs);
uint64_t pf_runs_pages(const struct pf_runs *runs);
uint64_t pf_runs_end(const struct pf_runs *runs);
const struct pf_run *pf_runs_items(const struct pf_runs *runs);
int pf_runs_append(struct pf_runs *runs, uint64_t start, uint64_t count);
int pf_runs_from_gaps(const uint64_t *flat, size_t values, uint64_t limit_pages,
		      struct pf_runs **out);
void pf_runs_to_gaps(const struct pf_runs *runs, uint64_t *flat);
/* "runs" without the pages of "other". */
int pf_runs_minus(const struct pf_runs *runs, const struct pf_runs *other, struct pf_runs **out);
/* The pages of "runs" that have the ordinals first .. first + count - 1 within it. */
int pf_runs_cut(const struct pf_runs *runs, uint64_t first, uint64_t count, struct pf_runs **out);
/* The runs that an array of page numbers makes up; sorts the array. */
int pf_runs_from_pages(uint64_t *page_numbers, size_t length, struct pf_runs **out);

/* pageset.c: a set of pages as a bitmap. Not locked: one thread at a time may change a set. */

struct pf_pageset;

int pf_pageset_create(uint64_t pages, struct pf_pageset **out);
void pf_pageset_destroy(struct pf_pageset *set);
int pf_pageset_copy(const struct pf_pageset *set, struct pf_pageset **out);
int pf_pageset_add(struct pf_pageset *set, uint64_t start, uint64_t count);
int pf_pageset_discard(struct pf_pageset *set, uint64_t start, uint64_t count);
int pf_pageset_add_runs(struct pf_pageset *set, const struct pf_runs *runs);
int pf_pageset_discard_runs(struct pf_pageset *set, const struct pf_runs *runs);
int pf_pageset_add_all(struct pf_pageset *set, const struct pf_pageset *other);
int pf_pageset_discard_all(struct pf_pageset *set, const struct pf_pageset *other);
int pf_pageset_keep_all(struct pf_pageset *set, const struct pf_pageset *other);
/* Adds "nonzero" to "sent" and takes "zero" out of it; adds both to "settled". */
int pf_pageset_note_sent(struct pf_pageset *sent, struct pf_pageset *settled,
			 const struct pf_runs *nonzero, const struct pf_runs *zero);
void pf_pageset_clear(struct pf_pageset *set);
bool pf_pageset_has(const struct pf_pageset *set, uint64_t page);
bool pf_pageset_any(const struct pf_pageset *set);
bool pf_pageset_equal(const struct pf_pageset *set, const struct pf_pageset *other);
int pf_pageset_count_range(const struct pf_pageset *set, uint64_t start, uint64_t count,
			   uint64_t *out);
/* The first run at or after "from"; ENOENT when there is none. */
int pf_pageset_next(const struct pf_pageset *set, uint64_t from, struct pf_run *out);
/* Discards the shorter runs, so that at most max_runs are left. */
int pf_pageset_keep_long_runs(struct pf_pageset *set, uint64_t max_runs);
/*
 * The runs that begin at or after "from" and end at or before "limit" (both may cut a run): at most
 * max_pages pages (the last run may be cut) and max_runs runs.
 */
int pf_pageset_take(const struct pf_pageset *set, uint64_t from, uint64_t limit,
		    uint64_t max_pages, uint64_t max_runs, struct pf_runs **out);

/* paging.c: the agent's mapping of a RAM file, and moving its pages in and out. */

int pf_map(int fd, uint64_t file_offset, uint64_t length, bool writable, uint8_t **out);
int pf_unmap(uint8_t *base, uint64_t length);
/* madvise(advice) on each run. */
int pf_advise(uint8_t *base, uint64_t pages, const struct pf_runs *runs, int advice);
/* MADV_PAGEOUT on each run. */
int pf_page_out(uint8_t *base, uint64_t pages, const struct pf_runs *runs);
/* The same from each processor in turn, for pages that sit in some processor's batch. */
int pf_page_out_everywhere(uint8_t *base, uint64_t pages, const struct pf_runs *runs);
/* Makes pages that this processor has just brought in ready to be paged out from any other. */
void pf_drain_batch(void);
/* Starts to read the swapped pages of "runs", all at once (MADV_WILLNEED). */
int pf_read_ahead(uint8_t *base, uint64_t pages, const struct pf_runs *runs);
/* Maps all of "runs", waiting for those that are swapped (MADV_POPULATE_READ). */
int pf_populate(uint8_t *base, uint64_t pages, const struct pf_runs *runs);
/*
 * What a batch needs before it is sent, in one call: reads ahead those of "runs" that are "swapped",
 * maps all, and parts them as pf_split_zero does.
 */
int pf_bring_in(uint8_t *base, uint64_t pages, const struct pf_runs *runs, bool swapped, int level,
		struct pf_runs **nonzero, struct pf_runs **zero);
/*
 * And after it: pages out what is mapped of "runs" (all, with "map"), unmaps them, and tells how many
 * pages stayed. The file's part that is mapped at base begins at file_offset.
 */
int pf_put_out(uint8_t *base, uint64_t pages, int fd, uint64_t file_offset,
	       const struct pf_runs *runs, bool map, uint64_t *stayed);
/* fallocate(PUNCH_HOLE | KEEP_SIZE) on each run. */
int pf_punch(int fd, uint64_t file_offset, const struct pf_runs *runs);

/* residency.c: what lies in swap. file_offset is that of page 0. */

/* Appends the data (not hole) pages of the file range to "out". */
int pf_data_pages(int fd, uint64_t file_offset, uint64_t pages, struct pf_pageset *out);
/* The same among the pages of "within" only, at a cost that grows with those. */
int pf_data_among(int fd, uint64_t file_offset, const struct pf_pageset *within,
		  struct pf_pageset *out);
/* The pages of "runs" that are swapped; *out is new. By cachestat(2): ENOSYS where it is missing. */
int pf_cachestat_swapped(int fd, uint64_t file_offset, const struct pf_runs *runs,
			 struct pf_runs **out);
/* How many pages of "runs" are in the page cache. */
int pf_cachestat_resident(int fd, uint64_t file_offset, const struct pf_runs *runs,
			  uint64_t *out);
/* The same, by mincore(2) where cachestat(2) is missing or forbidden: with what is in the swap cache. */
int pf_count_resident(uint8_t *base, uint64_t pages, int fd, uint64_t file_offset,
		      const struct pf_runs *runs, uint64_t *out);
/* The pages of "runs" that mincore(2) calls absent; *out is new. */
int pf_mincore_absent(uint8_t *base, uint64_t pages, const struct pf_runs *runs,
		      struct pf_runs **out);

/* pagemap.c: swap locations of shared pages, from a patched kernel. */

/*
 * The pages of "runs" whose pagemap entry says "swapped" in a swap device; *out is new.
 * pagemap_fd is this process's own /proc/self/pagemap.
 */
int pf_pagemap_swapped(int pagemap_fd, uint8_t *base, uint64_t pages, const struct pf_runs *runs,
		       struct pf_runs **out);
/*
 * The swapped pages of "runs" in the order of their swap slots: *slot_pages is a new array (free
 * with pf_free) of page numbers. *located tells how many entries had a location that was visible.
 */
int pf_pagemap_slot_order(int pagemap_fd, uint8_t *base, uint64_t pages,
			  const struct pf_runs *runs, uint64_t **slot_pages, size_t *length,
			  size_t *located);
void pf_free(void *memory);

/* zero.c and transfer.c: page payload between sockets and memory. */

/* Splits runs into pages that are all zero and the others; both out-parameters are new. */
int pf_split_zero(const uint8_t *base, uint64_t pages, const struct pf_runs *runs, int level,
		  struct pf_runs **nonzero, struct pf_runs **zero);
/* 0: portable, 1: SSE2, 2: AVX2. */
int pf_zero_best_level(void);
int pf_send_payload(int socket_fd, const uint8_t *head, size_t head_bytes, const uint8_t *base,
		    uint64_t pages, const struct pf_runs *runs);
/* By way of "placer", which may be NULL, or by pwrite. */
struct pf_placer;
int pf_receive_payload(int socket_fd, int ram_fd, uint64_t file_offset, const struct pf_runs *runs,
		       const struct pf_placer *placer, uint8_t *scratch, size_t scratch_bytes);
/* The same over whatever else carries bytes to the peer (wire.h). */
struct pf_wire;
int pf_send_payload_over(const struct pf_wire *wire, const uint8_t *head, size_t head_bytes,
			 const uint8_t *base, uint64_t pages, const struct pf_runs *runs);
int pf_receive_payload_over(const struct pf_wire *wire, int ram_fd, uint64_t file_offset,
			    const struct pf_runs *runs, const struct pf_placer *placer,
			    uint8_t *scratch, size_t scratch_bytes);
/* ECONNRESET when the peer closes before the last byte. */
int pf_receive_exact(int socket_fd, uint8_t *buffer, size_t length);

/* placing.c: pages that a RAM file has nothing of yet, without its lock. */

/* For the part of the file at file_offset; ram_fd is not duplicated, and must be writable. */
int pf_placer_create(int ram_fd, uint64_t file_offset, uint64_t length, struct pf_placer **out);
void pf_placer_destroy(struct pf_placer *placer);

/* tracking.c: pages written since the last look, in another process's address space. */

int pf_uffd_enable(int uffd, uint64_t *features);
/* From now on writes to [start, end) can be tracked; every page counts as written. */
int pf_uffd_register(int uffd, uint64_t start, uint64_t end);
/* Protects [start, end), which begins with page "first_page" of the set, but for the pages in it. */
int pf_uffd_protect(int uffd, uint64_t start, uint64_t end, const struct pf_pageset *but,
		    uint64_t first_page);
int pf_uffd_disarm(int uffd, uint64_t start, uint64_t end);
/* Adds the pages of [start, end) written since the last scan, and protects them again. */
int pf_scan_written(int pagemap_fd, uint64_t start, uint64_t end, struct pf_pageset *into,
		    uint64_t first_page, uint64_t *found);
/* Adds the pages of [start, end) that the page tables map now. */
int pf_scan_present(int pagemap_fd, uint64_t start, uint64_t end, struct pf_pageset *into,
		    uint64_t first_page, uint64_t *found);
/* A userfaultfd of this process's own, for probing. */
int pf_uffd_open(int *out);

/* helper.c and inject.c: making a userfaultfd in another process. */

/* What the injection was doing when it ended. */
enum pf_step {
	PF_STEP_START,   /* the helper process did not get going */
	PF_STEP_ATTACH,  /* PTRACE_SEIZE */
	PF_STEP_STOP,    /* waiting for the thread to stop */
	PF_STEP_PREPARE, /* reading its registers and the instruction */
	PF_STEP_CREATE,  /* userfaultfd(2), executed by the thread */
	PF_STEP_TAKE,    /* pidfd_getfd(2) */
	PF_STEP_CLOSE,   /* close(2), executed by the thread */
	PF_STEP_RESTORE, /* registers, signal mask, detach */
	PF_STEP_DONE,
	PF_STEP_STUCK    /* the helper process gave no sign of life */
};

struct pf_injection {
	int32_t error;         /* 0 or an errno value */
	int32_t step;          /* enum pf_step: where it ended */
	int32_t uffd;          /* this process's descriptor, close-on-exec; -1 on failure */
	int32_t thread_lost;   /* the thread died or was left in an unknown state */
	int64_t stopped_ns;    /* how long the thread was held */
};

/*
 * Stops thread "tid" of process "pid" once, has it make a userfaultfd, takes that over and closes
 * the thread's copy. syscall_address is that of a syscall instruction in the process. "out" is
 * always filled; the return value is out->error.
 */
int pf_inject_userfaultfd(int pid, int tid, uint64_t syscall_address, struct pf_injection *out);

/* pack.c: batches of pages, packed by zstd. One thread at a time may use a packer or unpacker. */

struct pf_packer;
struct pf_unpacker;

/* For batches of at most "max_pages"; EINVAL for more than 8 MiB of them. */
int pf_packer_create(uint64_t max_pages, struct pf_packer **out);
void pf_packer_destroy(struct pf_packer *packer);
/* Packs the pages of "runs" into the packer's own memory. E2BIG for more than it was made for. */
int pf_pack(struct pf_packer *packer, const uint8_t *base, uint64_t pages,
	    const struct pf_runs *runs, int level, size_t *packed_bytes);
const uint8_t *pf_packer_data(const struct pf_packer *packer);

int pf_unpacker_create(size_t packed_capacity, size_t plain_capacity, struct pf_unpacker **out);
void pf_unpacker_destroy(struct pf_unpacker *unpacker);
/* Where to put what is to be unpacked: "packed_capacity" bytes. */
uint8_t *pf_unpacker_buffer(struct pf_unpacker *unpacker);
/*
 * Unpacks the first "packed_bytes" of the buffer and writes the pages to where the runs say. EBADMSG
 * when it is not exactly one frame of exactly these pages; some of them may have been written then.
 */
int pf_unpack(struct pf_unpacker *unpacker, size_t packed_bytes, int ram_fd, uint64_t file_offset,
	      const struct pf_runs *runs);
