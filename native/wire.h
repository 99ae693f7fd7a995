/* How page payload reaches the peer, so that transfer.c need not know what is in between. */

#ifndef PAGEFERRY_WIRE_H
#define PAGEFERRY_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Both functions block until all is done, and return 0 or an errno value. */
struct pf_wire {
	/* Sends the vectors whole, changing them as it goes; "more" says that more follows at once. */
	int (*send)(void *context, struct iovec *vectors, size_t length, bool more);
	/* Receives exactly "length" bytes; ECONNRESET when the peer closes before the last one. */
	int (*receive)(void *context, uint8_t *buffer, size_t length);
	void *context;
};

#endif
