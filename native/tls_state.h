/* What the parts of the TLS extension share: contexts (tls_context.c), sessions (tls.c), and page
 * payload through them (tls_wire.c). */

#ifndef PAGEFERRY_TLS_STATE_H
#define PAGEFERRY_TLS_STATE_H

#include "tls.h"
#include "wire.h"

#include <openssl/ssl.h>

#define RECORD_BYTES ((size_t)SSL3_RT_MAX_PLAIN_LENGTH)

struct pf_tls_context {
	SSL_CTX *ssl;
	bool server;
};

struct pf_tls {
	SSL *ssl;
	int socket_fd;
	bool want_write;
	bool ready;
	uint64_t key_limit, key_bytes;
	struct pf_tls_failure failure;
	struct pf_wire wire;
	char protocol[PF_TLS_NAME_BYTES + 1];
	size_t staged;
	uint8_t staging[RECORD_BYTES];
	size_t certificate_bytes;
	uint8_t certificate[PF_TLS_CERTIFICATE_BYTES];
};

/* Says in *failure what the oldest error of this thread's queue says, and empties the queue. */
void tls_note_error(struct pf_tls_failure *failure);

/* Remembers the peer's certificate, or NULL: none. */
void tls_keep_certificate(struct pf_tls *tls, X509 *certificate);

/* struct pf_wire's functions; the context is the session. */
int tls_wire_send(void *context, struct iovec *vectors, size_t length, bool more);
int tls_wire_receive(void *context, uint8_t *buffer, size_t length);

#endif
