/*
 * Batches of pages, packed by zstd (RFC 8878): one frame a batch, with a checksum of its contents.
 *
 * The pages are copied before they are packed. The guest goes on writing them, and a compressor
 * that reads a byte twice and finds it changed may write a frame that does not unpack (QEMU met
 * that with zlib: its commit 007e179ef0e9). The copy is a small part of what packing costs.
 */

#include "native.h"
#include "scatter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

/* The largest that a frame may ask for: a batch is not larger, and a peer may not make us allocate
 * more (RFC 8878 calls it the window). */
#define MAX_WINDOW_LOG 23

struct pf_packer {
	ZSTD_CCtx *context;
	uint8_t *plain, *packed;
	size_t plain_bytes, packed_capacity, packed_bytes;
};

struct pf_unpacker {
	ZSTD_DCtx *context;
	uint8_t *packed, *plain;
	size_t packed_capacity, plain_capacity;
};

void pf_packer_destroy(struct pf_packer *packer)
{
	if (!packer)
		return;
	ZSTD_freeCCtx(packer->context);
	free(packer->plain);
	free(packer->packed);
	free(packer);
}

int pf_packer_create(uint64_t max_pages, struct pf_packer **out)
{
	struct pf_packer *packer;

	if (!max_pages || max_pages > (UINT64_C(1) << MAX_WINDOW_LOG) / PF_PAGE_BYTES)
		return EINVAL;
	packer = calloc(1, sizeof(*packer));
	if (!packer)
		return ENOMEM;
	packer->plain_bytes = max_pages * PF_PAGE_BYTES;
	packer->packed_capacity = ZSTD_compressBound(packer->plain_bytes);
	packer->context = ZSTD_createCCtx();
	packer->plain = malloc(packer->plain_bytes);
	packer->packed = malloc(packer->packed_capacity);
	if (!packer->context || !packer->plain || !packer->packed) {
		pf_packer_destroy(packer);
		return ENOMEM;
	}
	*out = packer;
	return 0;
}

int pf_pack(struct pf_packer *packer, const uint8_t *base, uint64_t pages,
	    const struct pf_runs *runs, int level, size_t *packed_bytes)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs), used = 0, result;

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	if (pf_runs_pages(runs) * PF_PAGE_BYTES > packer->plain_bytes)
		return E2BIG;
	for (size_t i = 0; i < length; i++) {
		size_t run_bytes = items[i].count * PF_PAGE_BYTES;

		memcpy(packer->plain + used, base + items[i].start * PF_PAGE_BYTES, run_bytes);
		used += run_bytes;
	}
	ZSTD_CCtx_reset(packer->context, ZSTD_reset_session_and_parameters);
	if (ZSTD_isError(ZSTD_CCtx_setParameter(packer->context, ZSTD_c_compressionLevel, level)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(packer->context, ZSTD_c_checksumFlag, 1)))
		return EINVAL;
	result = ZSTD_compress2(packer->context, packer->packed, packer->packed_capacity,
				packer->plain, used);
	if (ZSTD_isError(result))
		return EIO;
	packer->packed_bytes = result;
	*packed_bytes = result;
	return 0;
}

const uint8_t *pf_packer_data(const struct pf_packer *packer)
{
	return packer->packed;
}

void pf_unpacker_destroy(struct pf_unpacker *unpacker)
{
	if (!unpacker)
		return;
	ZSTD_freeDCtx(unpacker->context);
	free(unpacker->packed);
	free(unpacker->plain);
	free(unpacker);
}

int pf_unpacker_create(size_t packed_capacity, size_t plain_capacity, struct pf_unpacker **out)
{
	struct pf_unpacker *unpacker;

	if (!packed_capacity || plain_capacity < PF_PAGE_BYTES || plain_capacity % PF_PAGE_BYTES)
		return EINVAL;
	unpacker = calloc(1, sizeof(*unpacker));
	if (!unpacker)
		return ENOMEM;
	unpacker->packed_capacity = packed_capacity;
	unpacker->plain_capacity = plain_capacity;
	unpacker->context = ZSTD_createDCtx();
	unpacker->packed = malloc(packed_capacity);
	unpacker->plain = malloc(plain_capacity);
	if (!unpacker->context || !unpacker->packed || !unpacker->plain) {
		pf_unpacker_destroy(unpacker);
		return ENOMEM;
	}
	*out = unpacker;
	return 0;
}

uint8_t *pf_unpacker_buffer(struct pf_unpacker *unpacker)
{
	return unpacker->packed;
}

/* Writes what has been unpacked; the pages that are whole, and no more than were announced. */
static int place(int ram_fd, uint64_t file_offset, struct pf_cursor *cursor, uint64_t *left_pages,
		 const uint8_t *plain, size_t bytes)
{
	uint64_t pages = bytes / PF_PAGE_BYTES;

	if (bytes % PF_PAGE_BYTES || pages > *left_pages)
		return EBADMSG;
	*left_pages -= pages;
	return pf_scatter(ram_fd, file_offset, cursor, plain, pages);
}

int pf_unpack(struct pf_unpacker *unpacker, size_t packed_bytes, int ram_fd, uint64_t file_offset,
	      const struct pf_runs *runs)
{
	struct pf_cursor cursor = {.items = pf_runs_items(runs)};
	ZSTD_inBuffer in = {.src = unpacker->packed, .size = packed_bytes};
	uint64_t left_pages = pf_runs_pages(runs);
	size_t state;
	int error;

	if (packed_bytes > unpacker->packed_capacity)
		return E2BIG;
	ZSTD_DCtx_reset(unpacker->context, ZSTD_reset_session_and_parameters);
	if (ZSTD_isError(ZSTD_DCtx_setParameter(unpacker->context, ZSTD_d_windowLogMax,
						MAX_WINDOW_LOG)))
		return EINVAL;
	do {
		ZSTD_outBuffer out = {.dst = unpacker->plain, .size = unpacker->plain_capacity};

		/* Ends with a full buffer, with the frame, or with input that is used up too soon. */
		do {
			size_t in_before = in.pos, out_before = out.pos;

			state = ZSTD_decompressStream(unpacker->context, &out, &in);
			if (ZSTD_isError(state) || (in.pos == in_before && out.pos == out_before))
				return EBADMSG;
		} while (state && out.pos < out.size);
		error = place(ram_fd, file_offset, &cursor, &left_pages, unpacker->plain, out.pos);
		if (error)
			return error;
	} while (state);
	return left_pages || in.pos != in.size ? EBADMSG : 0;
}
