"""Mutual TLS over real sockets: who is let in, who is not, and what operators are told of it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageferry.certificates.files import CertificateFileError, Side
from pageferry.model.errors import PeerLostError
from pageferry.net.data import TlsSocket, drive
from pageferry.net.encryption import Credentials, Encryption
from pageferry.net.tls import NotReadyError, Session, TlsContext, TlsError, expiry_fault
from tests.support.pki import NOW, Pki, context

PROTOCOL = "pageferry"
Failure = BaseException | None


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def host_a(pki: Pki) -> Path:
    return pki.host("host-a.example")


@pytest.fixture(scope="module")
def host_b(pki: Pki) -> Path:
    return pki.host("host-b.example", dns=("b.example",), ip=("192.0.2.2", "2001:db8::2"))


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _address = listener.accept()
    with client, server:
        yield client, server


def begin(sock: socket.socket, session: Session, host: str | None = None) -> None:
    """The handshake and, since only then both sides know its outcome, a byte from the server."""
    drive(sock, session, session.handshake, 10, peer="the peer", host=host)
    if session.context.material.side is Side.SERVER:
        drive(sock, session, lambda: session.send_all(b"k"), 10, peer="the peer", host=host)
        return
    got = drive(sock, session, lambda: session.receive(1), 10, peer="the peer", host=host)
    if got != b"k":
        raise EOFError


def outcomes(
    client: TlsContext,
    server: TlsContext,
    host: str | None = "host-b.example",
    protocols: tuple[str, str] = (PROTOCOL, PROTOCOL),
) -> tuple[Failure, Failure]:
    """How the handshake ended for the client and for the server."""
    found: list[Failure] = [None, None]

    def side(index: int, sock: socket.socket, chosen: TlsContext, name: str | None) -> None:
        session = chosen.session(sock.fileno(), protocols[index], name)
        try:
            begin(sock, session, name)
        except (PeerLostError, EOFError) as error:
            found[index] = error
        finally:
            session.close()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    with connected() as (one, other):
        thread = threading.Thread(target=side, args=(1, other, server, None))
        thread.start()
        side(0, one, client, host)
        thread.join()
    return found[0], found[1]


def test_both_sides_know_each_other(host_a: Path, host_b: Path) -> None:
    client, server = context(host_a, Side.CLIENT), context(host_b, Side.SERVER)
    with connected() as (one, other):
        sessions = [
            client.session(one.fileno(), PROTOCOL, "b.example"),
            server.session(other.fileno(), PROTOCOL),
        ]
        thread = threading.Thread(target=begin, args=(other, sessions[1]))
        thread.start()
        begin(one, sessions[0])
        thread.join()
        assert "host-a.example" in sessions[1].peer().names
        assert {"host-b.example", "b.example", "192.0.2.2"} <= set(sessions[0].peer().names)
        assert sessions[0].export() == sessions[1].export()
        assert sessions[0].cipher.startswith("TLS_")


@pytest.mark.parametrize("host", ["host-b.example", "B.Example.", "192.0.2.2", "2001:db8::2"])
def test_names_and_addresses_of_the_host(host_a: Path, host_b: Path, host: str) -> None:
    assert outcomes(context(host_a, Side.CLIENT), context(host_b, Side.SERVER), host) == (
        None,
        None,
    )


@pytest.mark.parametrize("host", ["host-c.example", "127.0.0.2", "example", "2001:db8::3"])
def test_another_host_than_the_one_meant(host_a: Path, host_b: Path, host: str) -> None:
    mine, theirs = outcomes(context(host_a, Side.CLIENT), context(host_b, Side.SERVER), host)
    assert isinstance(mine, TlsError)
    assert f"is not for {host}" in mine.message
    assert "host-b.example" in mine.message
    assert "--dns" in mine.advice
    assert theirs is not None


def test_expired_and_not_yet_valid(pki: Pki, host_a: Path) -> None:
    for make, word in ((pki.expired, "expired on"), (pki.not_yet_valid, "not valid before")):
        bad = make(f"{make.__name__.replace('_', '-')}.example")
        client, server = context(host_a, Side.CLIENT), context(bad, Side.SERVER)
        mine, theirs = outcomes(client, server, bad.name)
        assert isinstance(mine, TlsError)
        assert word in mine.message
        assert "server-cert.pem" in mine.advice
        assert isinstance(theirs, TlsError)
        assert theirs.message.startswith("the peer ")
        assert "this host's certificate" in theirs.message
        assert word in expiry_fault(server, NOW)
        # The other way round: the client's is bad, and the server says so.
        mine, theirs = outcomes(
            context(bad, Side.CLIENT), context(host_a, Side.SERVER), "127.0.0.1"
        )
        assert isinstance(theirs, TlsError)
        assert word in theirs.message
        assert "client-cert.pem" in theirs.advice
        assert isinstance(mine, TlsError)
        assert "this host's certificate" in mine.message
        assert "client-cert.pem" in mine.advice


def test_other_authority(host_a: Path, tmp_path: Path) -> None:
    stranger = Pki.make(tmp_path, "another authority").host("host-b.example")
    mine, theirs = outcomes(context(host_a, Side.CLIENT), context(stranger, Side.SERVER))
    assert isinstance(mine, TlsError)
    assert "not issued by an authority in ca-cert.pem" in mine.message
    assert "another authority" in mine.message
    assert isinstance(theirs, TlsError)
    assert "does not know the authority" in theirs.message
    _mine, theirs = outcomes(
        context(stranger, Side.CLIENT), context(host_a, Side.SERVER), "127.0.0.1"
    )
    assert theirs is not None


def test_authority_of_the_same_name_is_still_another(host_a: Path, tmp_path: Path) -> None:
    impostor = Pki.make(tmp_path).host("host-b.example")
    mine, _theirs = outcomes(context(host_a, Side.CLIENT), context(impostor, Side.SERVER))
    assert isinstance(mine, TlsError)
    assert mine.failure.verify_error


def test_certificate_for_the_other_side(host_a: Path, host_b: Path, tmp_path: Path) -> None:
    """A client's certificate must not serve, nor a server's ask."""
    swapped = tmp_path
    for name, other in (("server", "client"), ("client", "server")):
        for kind in ("cert", "key"):
            target = swapped / f"{name}-{kind}.pem"
            target.write_bytes((host_b / f"{other}-{kind}.pem").read_bytes())
            target.chmod(0o600)
    (swapped / "ca-cert.pem").write_bytes((host_b / "ca-cert.pem").read_bytes())
    mine, _theirs = outcomes(context(host_a, Side.CLIENT), context(swapped, Side.SERVER))
    assert isinstance(mine, TlsError)
    assert "not meant for a server" in mine.message
    _mine, theirs = outcomes(
        context(swapped, Side.CLIENT), context(host_a, Side.SERVER), "127.0.0.1"
    )
    assert isinstance(theirs, TlsError)
    assert "not meant for a client" in theirs.message


def test_revoked_certificate(pki: Pki, host_b: Path) -> None:
    watchful, lost = pki.host("watchful.example"), pki.host("lost.example")
    pki.revoke(lost, watchful)
    _mine, theirs = outcomes(
        context(lost, Side.CLIENT), context(watchful, Side.SERVER), "watchful.example"
    )
    assert isinstance(theirs, TlsError)
    assert "revoked" in theirs.message
    assert outcomes(context(watchful, Side.CLIENT), context(host_b, Side.SERVER)) == (None, None)


def test_sessions_of_different_connections_cannot_be_joined(host_a: Path, host_b: Path) -> None:
    client, server = context(host_a, Side.CLIENT), context(host_b, Side.SERVER)
    mine, theirs = outcomes(client, server, protocols=("pageferry/aa", "pageferry/bb"))
    assert isinstance(mine, TlsError)
    assert isinstance(theirs, TlsError)


def python_client(
    directory: Path, *, certificate: bool = True, newest: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """Another implementation's client, with more tolerance than ours."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(directory / "ca-cert.pem")
    made.set_alpn_protocols([PROTOCOL])
    made.check_hostname = False
    if certificate:
        made.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    if newest is not None:
        made.maximum_version = newest
    return made


def server_against(
    server: TlsContext, client: Callable[[socket.socket], None]
) -> tuple[Failure, Failure]:
    """What becomes of our server's handshake with something that is not our client."""
    found: list[Failure] = [None, None]
    with connected() as (one, other):

        def run() -> None:
            session = server.session(other.fileno(), PROTOCOL)
            try:
                begin(other, session)
            except PeerLostError as error:
                found[1] = error
            session.close()
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            client(one)
        except OSError as error:
            found[0] = error
        thread.join()
    return found[0], found[1]


def shake(made: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def run(sock: socket.socket) -> None:
        with made.wrap_socket(sock) as wrapped:
            assert wrapped.recv(1) == b"k"

    return run


def test_another_implementation_is_understood(host_a: Path, host_b: Path) -> None:
    server = context(host_b, Side.SERVER)
    assert server_against(server, shake(python_client(host_a))) == (None, None)


def test_peer_without_a_certificate(host_a: Path, host_b: Path) -> None:
    mine = python_client(host_a, certificate=False)
    told, theirs = server_against(context(host_b, Side.SERVER), shake(mine))
    assert isinstance(theirs, TlsError)
    assert "no certificate to show" in theirs.message
    assert "client-cert.pem" in theirs.advice
    assert told is not None


def test_older_versions_are_refused(host_a: Path, host_b: Path) -> None:
    old = python_client(host_a, newest=ssl.TLSVersion.TLSv1_2)
    _told, theirs = server_against(context(host_b, Side.SERVER), shake(old))
    assert isinstance(theirs, TlsError)
    assert "no TLS 1.3" in theirs.message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        older = python_client(host_a, newest=ssl.TLSVersion.TLSv1_1)
        older.minimum_version = ssl.TLSVersion.TLSv1
    older.set_ciphers("DEFAULT@SECLEVEL=0")
    _told, theirs = server_against(context(host_b, Side.SERVER), shake(older))
    assert isinstance(theirs, TlsError)


def test_plaintext_to_a_port_with_tls(host_b: Path) -> None:
    _told, theirs = server_against(
        context(host_b, Side.SERVER), lambda sock: sock.sendall(b"\x93\xce\x00\x00\x00\x10hello")
    )
    assert isinstance(theirs, TlsError)
    assert "does not speak TLS" in theirs.message


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x40\x00", os.urandom(4096)])
def test_peer_that_sends_nonsense_and_leaves(host_b: Path, data: bytes) -> None:
    def leave(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    _told, theirs = server_against(context(host_b, Side.SERVER), leave)
    assert isinstance(theirs, PeerLostError)


def test_silent_peer_is_given_up(host_a: Path) -> None:
    with connected() as (one, other):
        sock = TlsSocket(
            one,
            context(host_a, Side.CLIENT),
            PROTOCOL,
            peer="the agent",
            host="host-b.example",
            check=lambda _certificate: None,
        )
        with pytest.raises(PeerLostError, match="the agent does not answer"):
            sock.begin(0.2)
        sock.close()
        assert other.recv(1) == b"\x16"


def test_slow_peer_gets_no_more_time_for_being_slow(host_b: Path) -> None:
    """A byte every now and then must not reset the clock."""
    with connected() as (one, other):
        stop = threading.Event()

        def drip() -> None:
            hello = b"\x16\x03\x01\x40\x00" + bytes(1000)
            for byte in hello:
                if stop.wait(0.05):
                    return
                with contextlib.suppress(OSError):
                    one.send(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        session = context(host_b, Side.SERVER).session(other.fileno(), PROTOCOL)
        with pytest.raises(PeerLostError, match="does not answer"):
            drive(other, session, session.handshake, 0.5, peer="the peer", host=None)
        stop.set()
        thread.join()


def test_non_blocking_session_says_what_it_waits_for(host_b: Path) -> None:
    with connected() as (_one, other):
        other.setblocking(False)
        session = context(host_b, Side.SERVER).session(other.fileno(), PROTOCOL)
        with pytest.raises(NotReadyError) as caught:
            session.handshake()
        assert not caught.value.write


def test_end_of_the_connection_is_no_end_of_the_session(host_a: Path, host_b: Path) -> None:
    """Only close_notify is: whoever cuts the line must not make a message look complete."""
    client, server = context(host_a, Side.CLIENT), context(host_b, Side.SERVER)
    for is_clean in (True, False):
        with connected() as (one, other):
            mine = client.session(one.fileno(), PROTOCOL, "host-b.example")
            theirs = server.session(other.fileno(), PROTOCOL)
            thread = threading.Thread(target=begin, args=(other, theirs))
            thread.start()
            begin(one, mine)
            thread.join()
            mine.send_all(b"abc")
            if is_clean:
                mine.end()
            one.shutdown(socket.SHUT_WR)
            assert theirs.receive(10) == b"abc"
            if is_clean:
                assert theirs.receive(10) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    theirs.receive(10)


def test_second_session_on_the_same_connection(host_a: Path, host_b: Path) -> None:
    """What handing a connection over rests on: the first session takes not a byte too many."""
    client, server = context(host_a, Side.CLIENT), context(host_b, Side.SERVER)
    with connected() as (one, other):
        for number in range(3):
            mine = client.session(one.fileno(), f"session-{number}", "host-b.example")
            theirs = server.session(other.fileno(), f"session-{number}")
            failures: list[BaseException] = []

            def serve(session: Session = theirs, found: list[BaseException] = failures) -> None:
                try:
                    begin(other, session)
                    assert session.receive(100) == b"hello"
                    assert session.receive(100) == b""
                    session.end()
                except BaseException as error:
                    found.append(error)
                    raise

            thread = threading.Thread(target=serve)
            thread.start()
            begin(one, mine)
            mine.send_all(b"hello")
            mine.end()
            assert mine.receive(100) == b""
            thread.join()
            assert not failures


class TestFiles:
    """The files themselves: what is refused, and when they are read."""

    def test_key_that_others_can_read(self, pki: Pki) -> None:
        directory = pki.host("open.example")
        for mode in (0o640, 0o604, 0o666):
            (directory / "server-key.pem").chmod(mode)
            with pytest.raises(CertificateFileError, match="by others") as caught:
                context(directory, Side.SERVER)
            assert "chmod 0600" in caught.value.advice
        (directory / "server-key.pem").chmod(0o400)
        context(directory, Side.SERVER)

    def test_missing_file(self, pki: Pki) -> None:
        directory = pki.host("missing.example")
        (directory / "client-key.pem").unlink()
        with pytest.raises(CertificateFileError, match=r"client-key\.pem is missing") as caught:
            context(directory, Side.CLIENT)
        assert "pageferry certs" in caught.value.advice

    def test_key_of_another_certificate(self, pki: Pki, host_a: Path) -> None:
        directory = pki.host("mixed.example")
        (directory / "server-key.pem").write_bytes((host_a / "server-key.pem").read_bytes())
        with pytest.raises(CertificateFileError, match="is not the key of"):
            context(directory, Side.SERVER)

    @pytest.mark.parametrize("name", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
    @pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
    def test_file_that_holds_something_else(self, pki: Pki, name: str, text: bytes) -> None:
        directory = pki.host("broken.example", force=True)
        (directory / name).write_bytes(text)
        with pytest.raises(CertificateFileError, match=name.replace(".", r"\.")):
            context(directory, Side.SERVER)

    def test_key_with_a_passphrase_asks_nobody(self, pki: Pki) -> None:
        from cryptography.hazmat.primitives import serialization

        directory = pki.host("locked.example")
        path = directory / "server-key.pem"
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(CertificateFileError, match=r"server-key\.pem holds no key") as caught:
            context(directory, Side.SERVER)
        assert "passphrase" in caught.value.advice

    def test_replaced_files_are_used_from_the_next_connection_on(self, pki: Pki) -> None:
        directory = pki.host("renewed.example")
        credentials = Credentials(directory, Side.SERVER)
        before = credentials.context()
        assert credentials.context() is before
        pki.host("renewed.example", force=True)
        after = credentials.context()
        assert after.own.fingerprint != before.own.fingerprint

    def test_half_replaced_files_change_nothing(
        self, pki: Pki, host_a: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = pki.host("half.example")
        credentials = Credentials(directory, Side.SERVER)
        before = credentials.context()
        key = (directory / "server-key.pem").read_bytes()
        (directory / "server-key.pem").write_bytes((host_a / "server-key.pem").read_bytes())
        assert credentials.context() is before
        assert credentials.context() is before
        assert caplog.text.count("is not the key of") == 1
        with pytest.raises(CertificateFileError):
            credentials.reload()
        (directory / "server-key.pem").write_bytes(key)
        assert credentials.context() is not before

    def test_expired_certificate_of_ones_own(self, pki: Pki) -> None:
        directory = pki.expired("past.example")
        credentials = Credentials(directory, Side.CLIENT)
        credentials.context()
        with pytest.raises(CertificateFileError, match=r"client-cert\.pem expired on") as caught:
            credentials.valid_context()
        assert "pageferry certs host" in caught.value.advice

    def test_never_usable_files_are_an_error_each_time(self, tmp_path: Path) -> None:
        credentials = Credentials(tmp_path, Side.SERVER)
        for _ in range(2):
            with pytest.raises(CertificateFileError, match="missing"):
                credentials.context()


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        *(("127.0.0.1", False), ("127.8.9.1", False), ("::1", False), ("localhost", False)),
        *(("::ffff:127.0.0.1", False), ("192.0.2.1", True), ("::ffff:192.0.2.1", True)),
        *(("host.example", True), ("localhost.example", True), ("0.0.0.0", True), ("::", True)),
    ],
)
def test_what_is_encrypted(host: str, needed: bool) -> None:
    assert Encryption().is_needed(host) == needed
    assert not Encryption(plaintext=True).is_needed(host)
    assert Encryption(loopback=True).is_needed(host)
    packet = Encryption(Path("/x"), loopback=True).to_packet()
    assert Encryption.from_packet(packet) == Encryption(Path("/x"), loopback=True)


def test_expiry_is_told_with_the_file(pki: Pki) -> None:
    directory = pki.host("soon.example", days=2)
    made = context(directory, Side.SERVER)
    assert expiry_fault(made, NOW) == ""
    later = NOW + datetime.timedelta(days=3)
    assert "server-cert.pem expired on" in expiry_fault(made, later)
