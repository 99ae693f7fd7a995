/* Packed batches: what was packed comes out where it belongs, and nothing else is accepted. */

#include "check.h"

#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 64, SCRATCH_PAGES = 4 };

static uint8_t *base;
static struct pf_packer *packer;
static struct pf_unpacker *unpacker;

static int make_file(void)
{
	int fd = memfd_create("pack", 0);

	CHECK(fd >= 0 && !ftruncate(fd, PAGES * PF_PAGE_BYTES));
	return fd;
}

static size_t pack(const struct pf_runs *runs, int level)
{
	size_t packed_bytes;

	CHECK(!pf_pack(packer, base, PAGES, runs, level, &packed_bytes));
	CHECK(packed_bytes <= PAGES * PF_PAGE_BYTES + 4096);
	memcpy(pf_unpacker_buffer(unpacker), pf_packer_data(packer), packed_bytes);
	return packed_bytes;
}

static void check_file(int fd, const struct pf_runs *runs)
{
	uint8_t page[PF_PAGE_BYTES], zero[PF_PAGE_BYTES] = {0};

	for (uint64_t i = 0; i < PAGES; i++) {
		const struct pf_run *items = pf_runs_items(runs);
		bool wanted = false;

		for (size_t n = 0; n < pf_runs_length(runs); n++)
			wanted |= i >= items[n].start && i < items[n].start + items[n].count;
		CHECK(pread(fd, page, sizeof(page), (off_t)(i * PF_PAGE_BYTES)) == PF_PAGE_BYTES);
		CHECK(!memcmp(page, wanted ? base + i * PF_PAGE_BYTES : zero, PF_PAGE_BYTES));
	}
}

static void test_round_trip(int level)
{
	struct pf_runs *runs = make_runs((uint64_t[]){0, 3, 7, 1, 20, 44}, 3);
	int fd = make_file();
	size_t packed_bytes = pack(runs, level);

	CHECK(!pf_unpack(unpacker, packed_bytes, fd, 0, runs));
	check_file(fd, runs);
	close(fd);
	pf_runs_destroy(runs);
}

static void test_what_does_not_fit_is_refused(void)
{
	struct pf_runs *runs = make_runs((uint64_t[]){4, 8}, 1);
	struct pf_runs *fewer = make_runs((uint64_t[]){4, 7}, 1);
	struct pf_runs *more = make_runs((uint64_t[]){4, 9}, 1);
	struct pf_runs *beyond = make_runs((uint64_t[]){60, 5}, 1);
	int fd = make_file();
	size_t packed_bytes = pack(runs, 1), ignored;

	CHECK(pf_unpack(unpacker, packed_bytes, fd, 0, fewer) == EBADMSG);
	CHECK(pf_unpack(unpacker, packed_bytes, fd, 0, more) == EBADMSG);
	CHECK(pf_unpack(unpacker, packed_bytes - 1, fd, 0, runs) == EBADMSG);
	CHECK(pf_unpack(unpacker, 0, fd, 0, runs) == EBADMSG);
	CHECK(pf_unpack(unpacker, SIZE_MAX, fd, 0, runs) == E2BIG);
	pf_unpacker_buffer(unpacker)[packed_bytes] = 0;
	CHECK(pf_unpack(unpacker, packed_bytes + 1, fd, 0, runs) == EBADMSG);
	CHECK(!pf_unpack(unpacker, packed_bytes, fd, 0, runs));
	CHECK(pf_pack(packer, base, PAGES, beyond, 1, &ignored) == ERANGE);
	close(fd);
	pf_runs_destroy(runs);
	pf_runs_destroy(fewer);
	pf_runs_destroy(more);
	pf_runs_destroy(beyond);
}

static void test_damage_is_found(void)
{
	struct pf_runs *runs = make_runs((uint64_t[]){0, 64}, 1);
	int fd = make_file(), found = 0;
	size_t packed_bytes = pack(runs, 1);
	uint64_t random = 7;

	for (int i = 0; i < 200; i++) {
		uint8_t *byte = pf_unpacker_buffer(unpacker) + next_random(&random) % packed_bytes;
		uint8_t was = *byte;

		*byte ^= (uint8_t)(1u << (next_random(&random) % 8));
		found += pf_unpack(unpacker, packed_bytes, fd, 0, runs) == EBADMSG;
		*byte = was;
	}
	/* A flipped bit of the frame's header that means nothing may pass. */
	CHECK(found >= 198);
	CHECK(!pf_unpack(unpacker, packed_bytes, fd, 0, runs));
	check_file(fd, runs);
	close(fd);
	pf_runs_destroy(runs);
}

static void test_sizes(void)
{
	struct pf_packer *other_packer = NULL;
	struct pf_unpacker *other_unpacker = NULL;
	struct pf_runs *runs = make_runs((uint64_t[]){0, 9}, 1);
	size_t ignored;

	CHECK(pf_packer_create(0, &other_packer) == EINVAL);
	CHECK(pf_packer_create(1 << 20, &other_packer) == EINVAL);
	CHECK(pf_unpacker_create(0, PF_PAGE_BYTES, &other_unpacker) == EINVAL);
	CHECK(pf_unpacker_create(1, PF_PAGE_BYTES + 1, &other_unpacker) == EINVAL);
	CHECK(!pf_packer_create(8, &other_packer));
	CHECK(pf_pack(other_packer, base, PAGES, runs, 1, &ignored) == E2BIG);
	pf_packer_destroy(other_packer);
	pf_runs_destroy(runs);
}

int main(void)
{
	uint64_t random = 42;

	base = aligned_alloc(PF_PAGE_BYTES, PAGES * PF_PAGE_BYTES);
	CHECK(base);
	/* Half noise, half text, and a page of zeros. */
	for (size_t i = 0; i < PAGES * PF_PAGE_BYTES; i++)
		base[i] = i / PF_PAGE_BYTES % 2 ? (uint8_t)next_random(&random) : (uint8_t)(i % 31);
	memset(base + 8 * PF_PAGE_BYTES, 0, PF_PAGE_BYTES);
	CHECK(!pf_packer_create(PAGES, &packer));
	CHECK(!pf_unpacker_create((PAGES + 1) * PF_PAGE_BYTES, SCRATCH_PAGES * PF_PAGE_BYTES,
				  &unpacker));
	for (int level = -3; level <= 9; level += 3)
		test_round_trip(level);
	test_what_does_not_fit_is_refused();
	test_damage_is_found();
	test_sizes();
	pf_packer_destroy(packer);
	pf_unpacker_destroy(unpacker);
	free(base);
	return 0;
}
