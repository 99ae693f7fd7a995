/* Mutual TLS 1.3 by libssl: contexts, sessions, and page payload through them. */

#include "tls.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define RECORD_BYTES ((size_t)SSL3_RT_MAX_PLAIN_LENGTH)

/* Several records in one read(2). */
#define READ_AHEAD_BYTES (8 * (RECORD_BYTES + 256))

/* A chain of a few certificates; what a stranger may make this process take in. */
#define MAX_CHAIN_BYTES (32 * 1024)
#define MAX_CHAIN_DEPTH 4

/*
 * AES-GCM stays safe for about 2^24.5 full records with one key (RFC 8446, 5.5), which is 370 GiB;
 * libssl does not change keys by itself.
 */
#define KEY_LIMIT_BYTES (64ull << 30)

static const char ciphers[] =
	"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

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
static void note_error(struct pf_tls_failure *failure)
{
	unsigned long error = ERR_get_error();
	const char *reason = ERR_reason_error_string(error);

	if (error) {
		ERR_error_string_n(error, failure->text, sizeof(failure->text));
		snprintf(failure->reason, sizeof(failure->reason), "%s", reason ? reason : "");
	}
	ERR_clear_error();
}

/* Never asks a terminal for a passphrase: a key that needs one is an error. */
static int no_passphrase(char *buffer, int size, int writing, void *context)
{
	(void)buffer, (void)size, (void)writing, (void)context;
	return -1;
}

static BIO *text_of(const uint8_t *text, size_t length)
{
	return length > INT32_MAX ? NULL : BIO_new_mem_buf(text, (int)length);
}

/* PEM_read_* at the end of the text leaves this error, which is none. */
static bool at_end(void)
{
	unsigned long error = ERR_peek_last_error();

	if (ERR_GET_LIB(error) != ERR_LIB_PEM || ERR_GET_REASON(error) != PEM_R_NO_START_LINE)
		return false;
	ERR_clear_error();
	return true;
}

static bool add_authorities(SSL_CTX *ssl, const uint8_t *text, size_t length)
{
	X509_STORE *store = SSL_CTX_get_cert_store(ssl);
	BIO *bio = text_of(text, length);
	X509 *authority;
	size_t count = 0;
	bool ok = bio;

	while (ok && (authority = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL))) {
		ok = X509_STORE_add_cert(store, authority) && SSL_CTX_add_client_CA(ssl, authority);
		X509_free(authority);
		count++;
	}
	BIO_free(bio);
	return ok && at_end() && count;
}

static bool add_revocations(SSL_CTX *ssl, const uint8_t *text, size_t length)
{
	X509_STORE *store = SSL_CTX_get_cert_store(ssl);
	BIO *bio;
	X509_CRL *list;
	size_t count = 0;
	bool ok;

	if (!length)
		return true;
	bio = text_of(text, length);
	ok = bio;
	while (ok && (list = PEM_read_bio_X509_CRL(bio, NULL, no_passphrase, NULL))) {
		ok = X509_STORE_add_crl(store, list);
		X509_CRL_free(list);
		count++;
	}
	BIO_free(bio);
	return ok && at_end() && count && X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
}

/* The peer's own certificate first, then those that lead to the authority. */
static bool use_certificate(SSL_CTX *ssl, const uint8_t *text, size_t length)
{
	BIO *bio = text_of(text, length);
	X509 *certificate = bio ? PEM_read_bio_X509(bio, NULL, no_passphrase, NULL) : NULL;
	bool ok = certificate && SSL_CTX_use_certificate(ssl, certificate);

	X509_free(certificate);
	while (ok && (certificate = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL))) {
		ok = SSL_CTX_add0_chain_cert(ssl, certificate);
		if (!ok)
			X509_free(certificate);
	}
	BIO_free(bio);
	return ok && at_end();
}

static bool use_key(SSL_CTX *ssl, const uint8_t *text, size_t length, bool *fits)
{
	BIO *bio = text_of(text, length);
	EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;

	*fits = key && SSL_CTX_use_PrivateKey(ssl, key) && SSL_CTX_check_private_key(ssl);
	BIO_free(bio);
	EVP_PKEY_free(key);
	return key;
}

static struct pf_tls *session_of(const SSL *ssl)
{
	return SSL_get_app_data(ssl);
}

static void keep_certificate(struct pf_tls *tls, X509 *certificate)
{
	uint8_t *end = tls->certificate;
	int length = certificate ? i2d_X509(certificate, NULL) : 0;

	tls->certificate_bytes = 0;
	if (length > 0 && length <= PF_TLS_CERTIFICATE_BYTES)
		tls->certificate_bytes = (size_t)i2d_X509(certificate, &end);
}

/* Remembers what is wrong with which certificate; the verdict stays libssl's. */
static int verified(int ok, X509_STORE_CTX *store)
{
	struct pf_tls *tls = session_of(X509_STORE_CTX_get_ex_data(
		store, SSL_get_ex_data_X509_STORE_CTX_idx()));

	if (!ok && tls) {
		tls->failure.verify_error = X509_STORE_CTX_get_error(store);
		tls->failure.verify_depth = X509_STORE_CTX_get_error_depth(store);
		keep_certificate(tls, X509_STORE_CTX_get_current_cert(store));
	}
	return ok;
}

static void note_alert(const SSL *ssl, int where, int value)
{
	struct pf_tls *tls = session_of(ssl);

	if (tls && where == SSL_CB_READ_ALERT && (value & 0xff) != SSL_AD_CLOSE_NOTIFY)
		tls->failure.alert = value & 0xff;
}

/* The server takes the one name that it waits for, or refuses. */
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_bytes,
			   const unsigned char *offered, unsigned int offered_bytes, void *context)
{
	struct pf_tls *tls = session_of(ssl);
	size_t wanted = strlen(tls->protocol);

	(void)context;
	while (offered_bytes) {
		if (offered[0] == wanted && !memcmp(offered + 1, tls->protocol, wanted)) {
			*out = offered + 1;
			*out_bytes = offered[0];
			return SSL_TLSEXT_ERR_OK;
		}
		offered_bytes -= 1u + offered[0];
		offered += 1u + offered[0];
	}
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static bool configure(SSL_CTX *ssl, bool server)
{
	SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				      SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_security_level(ssl, 2);
	SSL_CTX_set_max_cert_list(ssl, MAX_CHAIN_BYTES);
	SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verified);
	SSL_CTX_set_verify_depth(ssl, MAX_CHAIN_DEPTH);
	SSL_CTX_set_info_callback(ssl, note_alert);
	if (server)
		SSL_CTX_set_alpn_select_cb(ssl, choose_protocol, NULL);
	return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) &&
	       SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) &&
	       SSL_CTX_set_ciphersuites(ssl, ciphers) && SSL_CTX_set_num_tickets(ssl, 0);
}

int pf_tls_context_create(bool server, const uint8_t *authorities, size_t authorities_bytes,
			  const uint8_t *certificate, size_t certificate_bytes, const uint8_t *key,
			  size_t key_bytes, const uint8_t *revocations, size_t revocations_bytes,
			  struct pf_tls_failure *failure, struct pf_tls_context **out)
{
	struct pf_tls_context *context = calloc(1, sizeof(*context));
	bool fits = true;

	memset(failure, 0, sizeof(*failure));
	failure->alert = -1;
	if (!context)
		return ENOMEM;
	ERR_clear_error();
	context->server = server;
	context->ssl = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	if (!context->ssl || !configure(context->ssl, server))
		failure->part = PF_TLS_LIBRARY;
	else if (!add_authorities(context->ssl, authorities, authorities_bytes))
		failure->part = PF_TLS_AUTHORITIES;
	else if (!add_revocations(context->ssl, revocations, revocations_bytes))
		failure->part = PF_TLS_REVOCATIONS;
	else if (!use_certificate(context->ssl, certificate, certificate_bytes))
		failure->part = PF_TLS_CERTIFICATE;
	else if (!use_key(context->ssl, key, key_bytes, &fits))
		failure->part = PF_TLS_KEY;
	else if (!fits)
		failure->part = PF_TLS_KEY_OF_CERTIFICATE;
	else {
		*out = context;
		return 0;
	}
	note_error(failure);
	pf_tls_context_destroy(context);
	return EPROTO;
}

void pf_tls_context_destroy(struct pf_tls_context *context)
{
	if (context)
		SSL_CTX_free(context->ssl);
	free(context);
}

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

static int wire_send(void *context, struct iovec *vectors, size_t length, bool more);
static int wire_receive(void *context, uint8_t *buffer, size_t length);

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
	tls->wire = (struct pf_wire){.send = wire_send, .receive = wire_receive, .context = tls};
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
		note_error(failure);
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
	keep_certificate(tls, SSL_get0_peer_certificate(tls->ssl));
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
	note_error(&tls->failure);
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

static int wire_send(void *context, struct iovec *vectors, size_t length, bool more)
{
	struct pf_tls *tls = context;

	for (size_t i = 0; i < length; i++) {
		int error = send_piece(tls, vectors[i].iov_base, vectors[i].iov_len);

		if (error)
			return error;
	}
	return more ? 0 : flush(tls);
}

static int wire_receive(void *context, uint8_t *buffer, size_t length)
{
	return pf_tls_receive_exact(context, buffer, length);
}
