/* Page payload through a TLS session: whole records from where they are, pieces put together. */

#include "tls_state.h"

#include <errno.h>
#include <string.h>

int pf_tls_send_all(struct pf_tls *tls, const uint8_t *buffer, size_t length)
{
	while (length) {
		size_t written;
		int error = pf_tls_write(tls, buffer, length, &written);

		if (error)
			return error;
		buffer += written;
		length -= written;
	}
	return 0;
}

int pf_tls_receive_exact(struct pf_tls *tls, uint8_t *buffer, size_t length)
{
	while (length) {
		size_t received;
		int error = pf_tls_read(tls, buffer, length, &received);

		if (error)
			return error;
		if (!received)
			return ECONNRESET;
		buffer += received;
		length -= received;
	}
	return 0;
}

static int flush(struct pf_tls *tls)
{
	size_t staged = tls->staged;

	tls->staged = 0;
	return pf_tls_send_all(tls, tls->staging, staged);
}

/*
 * Whole records go out from where they are; pieces are put together first, since each record costs
 * some 22 bytes and a system call, however short it is.
 */
static int send_piece(struct pf_tls *tls, const uint8_t *piece, size_t length)
{
	int error = 0;

	while (length && !error) {
		size_t room = sizeof(tls->staging) - tls->staged;
		size_t part = length < room ? length : room;

		if (!tls->staged && length >= RECORD_BYTES) {
			part = length - length % RECORD_BYTES;
			error = pf_tls_send_all(tls, piece, part);
		} else {
			memcpy(tls->staging + tls->staged, piece, part);
			tls->staged += part;
			if (tls->staged == sizeof(tls->staging))
				error = flush(tls);
		}
		piece += part;
		length -= part;
	}
	return error;
}

int tls_wire_send(void *context, struct iovec *vectors, size_t length, bool more)
{
	struct pf_tls *tls = context;

	for (size_t i = 0; i < length; i++) {
		int error = send_piece(tls, vectors[i].iov_base, vectors[i].iov_len);

		if (error)
			return error;
	}
	return more ? 0 : flush(tls);
}

int tls_wire_receive(void *context, uint8_t *buffer, size_t length)
{
	return pf_tls_receive_exact(context, buffer, length);
}
