/* TLS sessions over socket pairs: payload, changes of keys, peers that leave, lie or talk nonsense. */

#include "check.h"
#include "tls.h"
#include "wire.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define PAGES 3000
#define PROTOCOL "pageferry"
#define HOST "host.example"

struct text {
	uint8_t bytes[4096];
	size_t length;
};

static struct text certificate, key, other_certificate, other_key;

static void keep(BIO *bio, struct text *text)
{
	int length = BIO_read(bio, text->bytes, sizeof(text->bytes));

	CHECK(length > 0 && (size_t)length < sizeof(text->bytes));
	text->length = (size_t)length;
	BIO_free(bio);
}

/* A certificate that is its own authority. */
static void make_certificate(struct text *certificate_text, struct text *key_text)
{
	EVP_PKEY *pkey = EVP_EC_gen("P-256");
	X509 *x509 = X509_new();
	X509_EXTENSION *names =
		X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "DNS:" HOST);
	BIO *bio;

	CHECK(pkey && x509 && names && X509_set_version(x509, 2));
	CHECK(ASN1_INTEGER_set(X509_get_serialNumber(x509), 1));
	CHECK(X509_gmtime_adj(X509_getm_notBefore(x509), -60));
	CHECK(X509_gmtime_adj(X509_getm_notAfter(x509), 3600));
	CHECK(X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_ASC,
					 (const uint8_t *)"host", -1, -1, 0));
	CHECK(X509_set_issuer_name(x509, X509_get_subject_name(x509)));
	CHECK(X509_set_pubkey(x509, pkey) && X509_add_ext(x509, names, -1));
	CHECK(X509_sign(x509, pkey, EVP_sha256()));
	CHECK((bio = BIO_new(BIO_s_mem())) && PEM_write_bio_X509(bio, x509));
	keep(bio, certificate_text);
	CHECK((bio = BIO_new(BIO_s_mem())) &&
	      PEM_write_bio_PrivateKey(bio, pkey, NULL, NULL, 0, NULL, NULL));
	keep(bio, key_text);
	X509_EXTENSION_free(names);
	X509_free(x509);
	EVP_PKEY_free(pkey);
}

static struct pf_tls_context *new_context(bool server)
{
	struct pf_tls_context *context;
	struct pf_tls_failure failure;

	CHECK(!pf_tls_context_create(server, certificate.bytes, certificate.length,
				     certificate.bytes, certificate.length, key.bytes, key.length,
				     NULL, 0, &failure, &context));
	return context;
}

/* A client and a server on a socket pair; [0] is the client. */
struct pair {
	int sockets[2];
	struct pf_tls_context *contexts[2];
	struct pf_tls *sessions[2];
	int errors[2];
};

static void open_pair(struct pair *pair, const char *host, const char *server_protocol)
{
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair->sockets));
	for (int side = 0; side < 2; side++) {
		pair->contexts[side] = new_context(side);
		CHECK(!pf_tls_create(pair->contexts[side], pair->sockets[side],
				     side ? server_protocol : PROTOCOL, side ? NULL : host, false,
				     side, &pair->sessions[side]));
	}
}

static void close_pair(struct pair *pair)
{
	for (int side = 0; side < 2; side++) {
		pf_tls_destroy(pair->sessions[side]);
		pf_tls_context_destroy(pair->contexts[side]);
		close(pair->sockets[side]);
	}
}

static void *serve_handshake(void *argument)
{
	struct pair *pair = argument;

	pair->errors[1] = pf_tls_handshake(pair->sessions[1]);
	if (pair->errors[1])
		shutdown(pair->sockets[1], SHUT_RDWR);
	return NULL;
}

static void shake_hands(struct pair *pair)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, serve_handshake, pair));
	pair->errors[0] = pf_tls_handshake(pair->sessions[0]);
	if (pair->errors[0])
		shutdown(pair->sockets[0], SHUT_RDWR);
	CHECK(!pthread_join(thread, NULL));
}

static void begin(struct pair *pair)
{
	open_pair(pair, HOST, PROTOCOL);
	shake_hands(pair);
	CHECK(!pair->errors[0] && !pair->errors[1]);
}

static uint8_t *new_ram(int *fd)
{
	uint8_t *base;

	*fd = memfd_create("pageferry-test", MFD_CLOEXEC);
	CHECK(*fd >= 0 && !ftruncate(*fd, (off_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_map(*fd, 0, (uint64_t)PAGES * PF_PAGE_BYTES, true, &base));
	return base;
}

struct sender {
	struct pf_tls *tls;
	const uint8_t *base;
	const struct pf_runs *runs;
	int error;
};

static void *send_it(void *argument)
{
	struct sender *sender = argument;

	sender->error = pf_send_payload_over(pf_tls_wire(sender->tls), (const uint8_t *)"head", 4,
					     sender->base, PAGES, sender->runs);
	return NULL;
}

/* Single pages, more of them than one round of vectors; runs shorter and longer than a record. */
static struct pf_runs *scattered_runs(void)
{
	struct pf_runs *runs;

	CHECK(!pf_runs_create(&runs));
	for (uint64_t page = 0; page < 2200; page += 2)
		CHECK(!pf_runs_append(runs, page, 1));
	CHECK(!pf_runs_append(runs, 2300, 3));
	CHECK(!pf_runs_append(runs, 2310, 5));
	CHECK(!pf_runs_append(runs, 2400, 599));
	return runs;
}

static void test_scattered_pages_arrive_where_they_belong(uint64_t key_limit_bytes)
{
	int source_fd, target_fd, small = 4608;
	uint8_t *source = new_ram(&source_fd), *target = new_ram(&target_fd), head[4];
	uint8_t *scratch = malloc(64 * PF_PAGE_BYTES);
	struct pf_runs *runs = scattered_runs();
	struct pf_pageset *set;
	struct pair pair;
	struct sender sender = {.base = source, .runs = runs};
	pthread_t thread;

	CHECK(scratch && !pf_pageset_create(PAGES, &set) && !pf_pageset_add_runs(set, runs));
	for (uint64_t page = 0; page < PAGES; page++)
		memset(source + page * PF_PAGE_BYTES, (int)(page % 251 + 1), PF_PAGE_BYTES);
	begin(&pair);
	CHECK(!setsockopt(pair.sockets[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)));
	pf_tls_set_key_limit(pair.sessions[0], key_limit_bytes);
	sender.tls = pair.sessions[0];
	CHECK(!pthread_create(&thread, NULL, send_it, &sender));
	CHECK(!pf_tls_receive_exact(pair.sessions[1], head, 4) && !memcmp(head, "head", 4));
	CHECK(!pf_receive_payload_over(pf_tls_wire(pair.sessions[1]), target_fd, 0, runs, NULL, scratch,
				       64 * PF_PAGE_BYTES));
	CHECK(!pthread_join(thread, NULL) && !sender.error);
	for (uint64_t page = 0; page < PAGES; page++)
		for (uint64_t i = 0; i < PF_PAGE_BYTES; i += 511)
			CHECK(target[page * PF_PAGE_BYTES + i] ==
			      (pf_pageset_has(set, page) ? page % 251 + 1 : 0));
	pf_pageset_destroy(set);
	pf_runs_destroy(runs);
	free(scratch);
	CHECK(!pf_unmap(source, (uint64_t)PAGES * PF_PAGE_BYTES));
	CHECK(!pf_unmap(target, (uint64_t)PAGES * PF_PAGE_BYTES));
	close(source_fd);
	close(target_fd);
	close_pair(&pair);
}

static void test_peer_that_leaves(void)
{
	int fd;
	uint8_t *base = new_ram(&fd), scratch[PF_PAGE_BYTES], byte;
	struct pf_runs *runs = make_runs((uint64_t[]){0, 2}, 1);
	struct pair pair;
	size_t received;

	begin(&pair);
	CHECK(!pf_tls_send_all(pair.sessions[0], base, 5000));
	shutdown(pair.sockets[0], SHUT_RDWR);
	CHECK(pf_receive_payload_over(pf_tls_wire(pair.sessions[1]), fd, 0, runs, NULL, scratch,
				      sizeof(scratch)) == ECONNRESET);
	CHECK(pf_send_payload_over(pf_tls_wire(pair.sessions[0]), NULL, 0, base, PAGES, runs) ==
	      EPIPE);
	close_pair(&pair);

	/* With close_notify it is an end, but still too early for payload. */
	begin(&pair);
	CHECK(!pf_tls_end(pair.sessions[0]));
	CHECK(!pf_tls_read(pair.sessions[1], &byte, 1, &received) && !received);
	CHECK(pf_tls_receive_exact(pair.sessions[1], &byte, 1) == ECONNRESET);
	CHECK(!pf_tls_send_all(pair.sessions[1], (const uint8_t *)"x", 1));
	CHECK(!pf_tls_receive_exact(pair.sessions[0], &byte, 1) && byte == 'x');
	close_pair(&pair);
	pf_runs_destroy(runs);
	pf_unmap(base, (uint64_t)PAGES * PF_PAGE_BYTES);
	close(fd);
}

static void test_wrong_host_and_wrong_protocol(void)
{
	uint8_t der[PF_TLS_CERTIFICATE_BYTES];
	struct pair pair;

	open_pair(&pair, "other.example", PROTOCOL);
	shake_hands(&pair);
	CHECK(pair.errors[0] == EPROTO && pair.errors[1]);
	CHECK(pf_tls_failure(pair.sessions[0])->verify_error == X509_V_ERR_HOSTNAME_MISMATCH);
	CHECK(pf_tls_certificate(pair.sessions[0], der) > 100);
	CHECK(pf_tls_write(pair.sessions[0], der, 1, &(size_t){0}) == EINVAL);
	close_pair(&pair);

	open_pair(&pair, HOST, "something else");
	shake_hands(&pair);
	CHECK(pair.errors[0] == EPROTO && pair.errors[1] == EPROTO);
	CHECK(pf_tls_failure(pair.sessions[0])->alert == SSL_AD_NO_APPLICATION_PROTOCOL);
	close_pair(&pair);
}

static void test_files_that_do_not_fit(void)
{
	const struct {
		const struct text *authorities, *certificate, *key;
		int part;
	} wrong[] = {
		{&key, &certificate, &key, PF_TLS_AUTHORITIES},
		{&certificate, &key, &key, PF_TLS_CERTIFICATE},
		{&certificate, &certificate, &certificate, PF_TLS_KEY},
		{&certificate, &certificate, &other_key, PF_TLS_KEY_OF_CERTIFICATE},
	};
	struct pf_tls_context *context;
	struct pf_tls_failure failure;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		CHECK(pf_tls_context_create(true, wrong[i].authorities->bytes,
					    wrong[i].authorities->length,
					    wrong[i].certificate->bytes,
					    wrong[i].certificate->length, wrong[i].key->bytes,
					    wrong[i].key->length, NULL, 0, &failure,
					    &context) == EPROTO);
		CHECK(failure.part == wrong[i].part);
	}
	CHECK(pf_tls_context_create(true, certificate.bytes, certificate.length,
				    certificate.bytes, certificate.length, key.bytes, key.length,
				    key.bytes, key.length, &failure, &context) == EPROTO);
	CHECK(failure.part == PF_TLS_REVOCATIONS);
}

static void test_sockets_that_are_not_ready(void)
{
	const struct timeval soon = {.tv_usec = 1000};
	struct pair pair;
	uint8_t byte;
	size_t received;

	open_pair(&pair, HOST, PROTOCOL);
	CHECK(!fcntl(pair.sockets[1], F_SETFL, O_NONBLOCK));
	CHECK(pf_tls_handshake(pair.sessions[1]) == EAGAIN);
	CHECK(!pf_tls_want_write(pair.sessions[1]));
	CHECK(pf_tls_read(pair.sessions[1], &byte, 1, &received) == EINVAL);
	close_pair(&pair);

	begin(&pair);
	CHECK(!setsockopt(pair.sockets[1], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon)));
	CHECK(pf_tls_receive_exact(pair.sessions[1], &byte, 1) == ETIMEDOUT);
	close_pair(&pair);
}

/* What a client says first, for spoiling. */
static size_t client_hello(uint8_t *buffer, size_t length)
{
	struct pair pair;
	ssize_t got;

	open_pair(&pair, HOST, PROTOCOL);
	CHECK(!fcntl(pair.sockets[0], F_SETFL, O_NONBLOCK));
	CHECK(pf_tls_handshake(pair.sessions[0]) == EAGAIN);
	got = recv(pair.sockets[1], buffer, length, MSG_DONTWAIT);
	CHECK(got > 100);
	close_pair(&pair);
	return (size_t)got;
}

static void test_nonsense_is_refused(void)
{
	struct pf_tls_context *context = new_context(true);
	uint8_t hello[2048], spoilt[2048];
	size_t length = client_hello(hello, sizeof(hello));
	uint64_t state = 4711;

	for (int turn = 0; turn < 600; turn++) {
		struct pf_tls *tls;
		int sockets[2], error;
		size_t part = turn % 3 ? length : next_random(&state) % length + 1;

		memcpy(spoilt, hello, length);
		for (uint64_t spoil = next_random(&state) % 8 + 1; spoil; spoil--)
			spoilt[next_random(&state) % length] = (uint8_t)next_random(&state);
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
		CHECK(!pf_tls_create(context, sockets[1], PROTOCOL, NULL, false, false, &tls));
		CHECK(write(sockets[0], spoilt, part) == (ssize_t)part);
		CHECK(!shutdown(sockets[0], SHUT_WR));
		error = pf_tls_handshake(tls);
		CHECK(error == EPROTO || error == ECONNRESET);
		pf_tls_destroy(tls);
		close(sockets[0]);
		close(sockets[1]);
	}
	pf_tls_context_destroy(context);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	make_certificate(&certificate, &key);
	make_certificate(&other_certificate, &other_key);
	test_scattered_pages_arrive_where_they_belong(1ull << 40);
	test_scattered_pages_arrive_where_they_belong(64 * 1024);
	test_peer_that_leaves();
	test_wrong_host_and_wrong_protocol();
	test_files_that_do_not_fit();
	test_sockets_that_are_not_ready();
	test_nonsense_is_refused();
	return 0;
}
