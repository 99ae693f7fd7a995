/* Mutual TLS 1.3 by libssl: sessions. Their contexts: tls_context.c; page payload: tls_wire.c. */

#include "tls_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

/* Several records in one read(2). */
#define READ_AHEAD_BYTES (8 * (RECORD_BYTES + 256))

/*
 * AES-GCM stays safe for about 2^24.5 full records with one key (RFC 8446, 5.5), which is 370 GiB;
 * libssl does not change keys by itself.
 */
#define KEY_LIMIT_BYTES (64ull << 30)

static bool expect_host(SSL *ssl, const char *host, bool is_address)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(ssl);

	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT |
						       X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	if (!host)
		return true;
	return is_address ? X509_VERIFY_PARAM_set1_ip_asc(param, host)
			  : X509_VERIFY_PARAM_set1_host(param, host, 0);
}

static bool offer_protocol(struct pf_tls *tls)
{
	unsigned char offer[1 + PF_TLS_NAME_BYTES];
	size_t length = strlen(tls->protocol);

	offer[0] = (unsigned char)length;
	memcpy(offer + 1, tls->protocol, length);
	return !SSL_set_alpn_protos(tls->ssl, offer, (unsigned int)length + 1); /* 0: success */
}

int pf_tls_create(struct pf_tls_context *context, int socket_fd, const char *protocol,
		  const char *host, bool is_address, bool read_ahead, struct pf_tls **out)
{
	struct pf_tls *tls;
	size_t length = strlen(protocol);

	if (!length || length > PF_TLS_NAME_BYTES)
		return EINVAL;
	tls = calloc(1, sizeof(*tls));
	if (!tls)
		return ENOMEM;
	ERR_clear_error();
	memcpy(tls->protocol, protocol, length);
	tls->socket_fd = socket_fd;
	tls->key_limit = KEY_LIMIT_BYTES;
	tls->failure.alert = -1;
	tls->wire = (struct pf_wire){.send = tls_wire_send, .receive = tls_wire_receive, .context = tls};
	tls->ssl = SSL_new(context->ssl);
	if (!tls->ssl || !SSL_set_app_data(tls->ssl, tls) || !SSL_set_fd(tls->ssl, socket_fd) ||
	    !expect_host(tls->ssl, host, is_address) ||
	    (!context->server && !offer_protocol(tls))) {
		ERR_clear_error();
		pf_tls_destroy(tls);
		return EINVAL;
	}
	if (read_ahead) {
		SSL_set_default_read_buffer_len(tls->ssl, READ_AHEAD_BYTES);
		SSL_set_read_ahead(tls->ssl, 1);
	}
	if (context->server)
		SSL_set_accept_state(tls->ssl);
	else
		SSL_set_connect_state(tls->ssl);
	*out = tls;
	return 0;
}

void pf_tls_destroy(struct pf_tls *tls)
{
	if (!tls)
		return;
	SSL_free(tls->ssl); /* says nothing to the peer, and leaves the socket open */
	OPENSSL_cleanse(tls->staging, sizeof(tls->staging));
	free(tls);
}

static int not_ready(struct pf_tls *tls, bool want_write)
{
	int flags = fcntl(tls->socket_fd, F_GETFL);

	tls->want_write = want_write;
	if (flags < 0)
		return errno;
	return flags & O_NONBLOCK ? EAGAIN : ETIMEDOUT;
}

/* A signal came in between; libssl gives up a blocking call for it. */
static bool interrupted(const struct pf_tls *tls, int result, int system_error)
{
	return result <= 0 && system_error == EINTR && SSL_want(tls->ssl) != SSL_NOTHING;
}

/* What a call's result means; "system_error" is errno right after it. */
static int outcome(struct pf_tls *tls, int result, int system_error)
{
	struct pf_tls_failure *failure = &tls->failure;
	unsigned long error;

	switch (SSL_get_error(tls->ssl, result)) {
	case SSL_ERROR_WANT_READ:
		return not_ready(tls, false);
	case SSL_ERROR_WANT_WRITE:
		return not_ready(tls, true);
	case SSL_ERROR_ZERO_RETURN:
		return ECONNRESET; /* where something was still to come */
	case SSL_ERROR_SYSCALL:
		ERR_clear_error();
		return system_error ? system_error : ECONNRESET;
	default:
		error = ERR_peek_error();
		if (ERR_GET_LIB(error) == ERR_LIB_SSL &&
		    ERR_GET_REASON(error) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
			ERR_clear_error();
			return ECONNRESET;
		}
		tls_note_error(failure);
		return EPROTO;
	}
}

/* Both sides must have come with the same name, or this is another session than the one meant. */
static bool protocol_agreed(struct pf_tls *tls)
{
	const unsigned char *chosen;
	unsigned int length;

	SSL_get0_alpn_selected(tls->ssl, &chosen, &length);
	return length == strlen(tls->protocol) && !memcmp(chosen, tls->protocol, length);
}

int pf_tls_handshake(struct pf_tls *tls)
{
	int result, system_error;

	do {
		ERR_clear_error();
		errno = 0;
		result = SSL_do_handshake(tls->ssl);
		system_error = errno;
	} while (interrupted(tls, result, system_error));
	if (result != 1)
		return outcome(tls, result, system_error);
	tls_keep_certificate(tls, SSL_get0_peer_certificate(tls->ssl));
	if (!protocol_agreed(tls)) {
		snprintf(tls->failure.reason, sizeof(tls->failure.reason), "no application protocol");
		return EPROTO;
	}
	tls->ready = true;
	return 0;
}

int pf_tls_read(struct pf_tls *tls, uint8_t *buffer, size_t length, size_t *received)
{
	int result, system_error;

	if (!tls->ready)
		return EINVAL;
	do {
		ERR_clear_error();
		errno = 0;
		result = SSL_read_ex(tls->ssl, buffer, length, received);
		system_error = errno;
	} while (interrupted(tls, result, system_error));
	if (result)
		return 0;
	if (SSL_get_error(tls->ssl, result) == SSL_ERROR_ZERO_RETURN) {
		*received = 0;
		return 0;
	}
	return outcome(tls, result, system_error);
}

static int change_key(struct pf_tls *tls, size_t length)
{
	tls->key_bytes += length;
	if (tls->key_bytes < tls->key_limit)
		return 0;
	tls->key_bytes = 0;
	return SSL_key_update(tls->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) ? 0 : EPROTO;
}

int pf_tls_write(struct pf_tls *tls, const uint8_t *buffer, size_t length, size_t *written)
{
	int result, system_error;

	if (!tls->ready || !length)
		return EINVAL;
	do {
		ERR_clear_error();
		errno = 0;
		result = SSL_write_ex(tls->ssl, buffer, length, written);
		system_error = errno;
	} while (interrupted(tls, result, system_error));
	return result ? change_key(tls, *written) : outcome(tls, result, system_error);
}

int pf_tls_end(struct pf_tls *tls)
{
	int result;

	if (!tls->ready)
		return EINVAL;
	ERR_clear_error();
	errno = 0;
	result = SSL_shutdown(tls->ssl);
	return result >= 0 ? 0 : outcome(tls, result, errno);
}

bool pf_tls_want_write(const struct pf_tls *tls)
{
	return tls->want_write;
}

const struct pf_tls_failure *pf_tls_failure(const struct pf_tls *tls)
{
	return &tls->failure;
}

size_t pf_tls_certificate(const struct pf_tls *tls, uint8_t *der)
{
	memcpy(der, tls->certificate, tls->certificate_bytes);
	return tls->certificate_bytes;
}

int pf_tls_export(struct pf_tls *tls, uint8_t *value, size_t length)
{
	static const char label[] = "EXPORTER-pageferry-next-session";

	if (!tls->ready)
		return EINVAL;
	ERR_clear_error();
	if (SSL_export_keying_material(tls->ssl, value, length, label, sizeof(label) - 1, NULL, 0,
				       0) == 1)
		return 0;
	tls_note_error(&tls->failure);
	return EPROTO;
}

const char *pf_tls_cipher(const struct pf_tls *tls)
{
	return SSL_get_cipher_name(tls->ssl);
}

const struct pf_wire *pf_tls_wire(const struct pf_tls *tls)
{
	return &tls->wire;
}

void pf_tls_set_key_limit(struct pf_tls *tls, uint64_t limit_bytes)
{
	tls->key_limit = limit_bytes;
}

const char *pf_tls_verify_text(int verify_error)
{
	return X509_verify_cert_error_string(verify_error);
}
