/* The least that a test program needs: a check that names what failed, and a random stream. */

#ifndef PAGEFERRY_CHECK_H
#define PAGEFERRY_CHECK_H

#include "native.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);        \
			exit(1);                                                               \
		}                                                                              \
	} while (0)

/* xorshift64: the same stream in every run. */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static inline struct pf_runs *make_runs(const uint64_t *pairs, size_t length)
{
	struct pf_runs *runs;

	CHECK(!pf_runs_create(&runs));
	for (size_t i = 0; i < length; i++)
		CHECK(!pf_runs_append(runs, pairs[2 * i], pairs[2 * i + 1]));
	return runs;
}

#endif
