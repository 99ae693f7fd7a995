/*
 * The interface of the TLS extension, pageferry.net._tls. Read twice, as api.h is: by the C compiler
 * and by cffi, so it holds plain declarations only.
 *
 * Apart from the other extension, so that only what speaks TLS needs libssl. Functions that can fail
 * return 0 or an errno value: EAGAIN when a non-blocking socket is not ready (pf_tls_want_write says
 * for what), ETIMEDOUT when the timeout of a blocking one has passed, ECONNRESET when the connection
 * ended without TLS's own end, EPROTO when TLS failed (pf_tls_failure says how). After any error but
 * EAGAIN the session is of no more use.
 *
 * A session is used by one thread at a time. libssl writes with write(2): SIGPIPE must be ignored, as
 * Python does.
 */

/* Longest certificate, and longest name of a session, that is kept. */
#define PF_TLS_CERTIFICATE_BYTES 16384
#define PF_TLS_NAME_BYTES 255

/* Where making a context failed. */
enum pf_tls_part {
	PF_TLS_LIBRARY,
	PF_TLS_AUTHORITIES,
	PF_TLS_REVOCATIONS,
	PF_TLS_CERTIFICATE,
	PF_TLS_KEY,
	PF_TLS_KEY_OF_CERTIFICATE
};

struct pf_tls_failure {
	int32_t part;         /* enum pf_tls_part, of pf_tls_context_create only */
	int32_t verify_error; /* X509_V_ERR_*: what is wrong with the peer's certificate; or 0 */
	int32_t verify_depth; /* of the certificate that is: 0 is the peer's own */
	int32_t alert;        /* the TLS alert that the peer sent; or -1 */
	char reason[64];      /* libssl's name of the error, for instance WRONG_VERSION_NUMBER */
	char text[256];       /* what libssl or the system says */
};

struct pf_tls_context;
struct pf_tls;
struct pf_wire;

/*
 * What all connections of one role have in common. The four texts are PEM; "revocations" may be
 * empty. TLS 1.3 only, no tickets, no early data, both sides' certificates required.
 */
int pf_tls_context_create(bool server, const uint8_t *authorities, size_t authorities_bytes,
			  const uint8_t *certificate, size_t certificate_bytes, const uint8_t *key,
			  size_t key_bytes, const uint8_t *revocations, size_t revocations_bytes,
			  struct pf_tls_failure *failure, struct pf_tls_context **out);
void pf_tls_context_destroy(struct pf_tls_context *context);

/*
 * A session on the connected socket, which stays the caller's. "protocol" is the ALPN name that both
 * sides must come with. "host" is the DNS name, or with is_address the IP address, that the peer's
 * certificate must be for; NULL for any. Bytes beyond the record that is asked for are left in the
 * socket, unless read_ahead.
 */
int pf_tls_create(struct pf_tls_context *context, int socket_fd, const char *protocol,
		  const char *host, bool is_address, bool read_ahead, struct pf_tls **out);
void pf_tls_destroy(struct pf_tls *tls);

int pf_tls_handshake(struct pf_tls *tls);
/* *received is 0 when the peer has ended the session, as it should, with close_notify. */
int pf_tls_read(struct pf_tls *tls, uint8_t *buffer, size_t length, size_t *received);
/* After EAGAIN the next call must begin with the same bytes, at least as many, at any address. */
int pf_tls_write(struct pf_tls *tls, const uint8_t *buffer, size_t length, size_t *written);
/* Sends close_notify: nothing more is written. Reading goes on. */
int pf_tls_end(struct pf_tls *tls);

bool pf_tls_want_write(const struct pf_tls *tls);
const struct pf_tls_failure *pf_tls_failure(const struct pf_tls *tls);
/*
 * The peer's certificate as DER; before the handshake is through, the one of its chain that was found
 * wrong. At most PF_TLS_CERTIFICATE_BYTES; 0 when there is none.
 */
size_t pf_tls_certificate(const struct pf_tls *tls, uint8_t *der);
/* A value that only the two ends of this very session know (RFC 8446, 7.5). */
int pf_tls_export(struct pf_tls *tls, uint8_t *value, size_t length);
const char *pf_tls_cipher(const struct pf_tls *tls);

/* For blocking sockets: all or nothing. The wire is the session's and lives as long as it. */
int pf_tls_send_all(struct pf_tls *tls, const uint8_t *buffer, size_t length);
int pf_tls_receive_exact(struct pf_tls *tls, uint8_t *buffer, size_t length);
const struct pf_wire *pf_tls_wire(const struct pf_tls *tls);
/* A session changes its sending key after so many bytes. */
void pf_tls_set_key_limit(struct pf_tls *tls, uint64_t limit_bytes);
/* X509_V_ERR_*, in libssl's words. */
const char *pf_tls_verify_text(int verify_error);
