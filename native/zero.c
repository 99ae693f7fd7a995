/*
 * Is a page all zero? Three implementations with one answer: portable, SSE2 (every x86-64 has it)
 * and AVX2 (chosen at run time). Most pages that are not zero say so in their first bytes, so all
 * of them look at 128 bytes at a time and leave early.
 */

#include "native.h"

#include <errno.h>
#include <immintrin.h>
#include <string.h>

enum { LEVEL_PORTABLE, LEVEL_SSE2, LEVEL_AVX2 };

static bool is_zero_portable(const uint8_t *page)
{
	for (size_t i = 0; i < PF_PAGE_BYTES; i += sizeof(uint64_t)) {
		uint64_t value;

		memcpy(&value, page + i, sizeof(value));
		if (value)
			return false;
	}
	return true;
}

static bool is_zero_sse2(const uint8_t *page)
{
	const __m128i *vector = (const __m128i *)page;

	for (size_t i = 0; i < PF_PAGE_BYTES / sizeof(*vector); i += 8) {
		__m128i a = _mm_or_si128(_mm_load_si128(vector + i), _mm_load_si128(vector + i + 1));
		__m128i b = _mm_or_si128(_mm_load_si128(vector + i + 2),
					 _mm_load_si128(vector + i + 3));
		__m128i c = _mm_or_si128(_mm_load_si128(vector + i + 4),
					 _mm_load_si128(vector + i + 5));
		__m128i d = _mm_or_si128(_mm_load_si128(vector + i + 6),
					 _mm_load_si128(vector + i + 7));
		__m128i any = _mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d));

		if (_mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) != 0xffff)
			return false;
	}
	return true;
}

__attribute__((target("avx2"))) static bool is_zero_avx2(const uint8_t *page)
{
	const __m256i *vector = (const __m256i *)page;

	for (size_t i = 0; i < PF_PAGE_BYTES / sizeof(*vector); i += 4) {
		__m256i a = _mm256_or_si256(_mm256_load_si256(vector + i),
					    _mm256_load_si256(vector + i + 1));
		__m256i b = _mm256_or_si256(_mm256_load_si256(vector + i + 2),
					    _mm256_load_si256(vector + i + 3));
		__m256i any = _mm256_or_si256(a, b);

		if (!_mm256_testz_si256(any, any))
			return false;
	}
	return true;
}

int pf_zero_best_level(void)
{
	return __builtin_cpu_supports("avx2") ? LEVEL_AVX2 : LEVEL_SSE2;
}

bool pf_page_is_zero(const uint8_t *page, int level)
{
	switch (level) {
	case LEVEL_AVX2:
		return is_zero_avx2(page);
	case LEVEL_SSE2:
		return is_zero_sse2(page);
	default:
		return is_zero_portable(page);
	}
}

static int split(const uint8_t *base, const struct pf_runs *runs, int level,
		 struct pf_runs *nonzero, struct pf_runs *zero)
{
	const struct pf_run *items = pf_runs_items(runs);
	size_t length = pf_runs_length(runs);
	int error;

	for (size_t i = 0; i < length; i++) {
		for (uint64_t n = 0; n < items[i].count; n++) {
			uint64_t page = items[i].start + n;
			bool is_zero = pf_page_is_zero(base + page * PF_PAGE_BYTES, level);

			error = pf_runs_append(is_zero ? zero : nonzero, page, 1);
			if (error)
				return error;
		}
	}
	return 0;
}

int pf_split_zero(const uint8_t *base, uint64_t pages, const struct pf_runs *runs, int level,
		  struct pf_runs **nonzero, struct pf_runs **zero)
{
	struct pf_runs *nonzero_runs = NULL, *zero_runs = NULL;
	int error;

	if (!pf_runs_fit(runs, pages))
		return ERANGE;
	if (level == LEVEL_AVX2 && pf_zero_best_level() != LEVEL_AVX2)
		return ENOTSUP;
	error = pf_runs_create(&nonzero_runs);
	if (!error)
		error = pf_runs_create(&zero_runs);
	if (!error)
		error = split(base, runs, level, nonzero_runs, zero_runs);
	if (error) {
		pf_runs_destroy(nonzero_runs);
		pf_runs_destroy(zero_runs);
		return error;
	}
	*nonzero = nonzero_runs;
	*zero = zero_runs;
	return 0;
}
