/* TLS contexts: keys, certificates and authorities, and how a peer's certificate is judged. */

#include "tls_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

/* A chain of a few certificates; what a stranger may make this process take in. */
#define MAX_CHAIN_BYTES (32 * 1024)
#define MAX_CHAIN_DEPTH 4

static const char ciphers[] =
	"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

void tls_note_error(struct pf_tls_failure *failure)
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

void tls_keep_certificate(struct pf_tls *tls, X509 *certificate)
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
		tls_keep_certificate(tls, X509_STORE_CTX_get_current_cert(store));
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
	tls_note_error(failure);
	pf_tls_context_destroy(context);
	return EPROTO;
}

void pf_tls_context_destroy(struct pf_tls_context *context)
{
	if (context)
		SSL_CTX_free(context->ssl);
	free(context);
}
