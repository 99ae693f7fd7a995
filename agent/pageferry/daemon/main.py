"""pageferryd: start-up, signals and the end."""

from __future__ import annotations

import argparse
import datetime
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from pageferry import __version__
from pageferry.certificates.files import CertificateFileError, Side
from pageferry.certificates.inspection import WARN_DAYS
from pageferry.control.registry import Registry
from pageferry.control.server import ControlServer, bind_control_socket
from pageferry.daemon.access import access_for
from pageferry.daemon.commands import Commands
from pageferry.daemon.config import DEFAULT_PATH, Config, load_config
from pageferry.daemon.hooks import Hooks, hooks_for
from pageferry.daemon.listener import Listener, open_listeners
from pageferry.daemon.supervisor import Supervisor
from pageferry.daemon.worker_process import WORKER_COMMAND
from pageferry.model.errors import PageferryError, RefusedError
from pageferry.net.encryption import Credentials
from pageferry.net.tls import expiry_fault
from pageferry.testing.sabotage import SabotageError, requested_sabotage

log = logging.getLogger("pageferryd")

JOURNAL_FORMAT = "%(message)s"
TERMINAL_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon. Returns its exit status: 0 after a signal, 1 when it cannot start."""
    arguments = _parser().parse_args(argv)
    _set_up_logging(verbose=arguments.verbose)
    try:
        _tell_sabotage()
        config = _configuration(arguments.config)
        check_certificates(config)
        if arguments.check:
            print("the configuration is fine")
            return 0
        with state_directory(config.state_directory):
            trio.run(run_daemon, config)
    except PageferryError as error:
        print(f"pageferryd: {error.message}", file=sys.stderr)
        if error.advice:
            print(f"pageferryd: {error.advice}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pageferryd", description="Carries running QEMU guests to and from other hosts."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"configuration (default: {DEFAULT_PATH})"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--verbose", action="store_true", help="log every command")
    parser.add_argument("--version", action="version", version=f"pageferryd {__version__}")
    return parser


def _configuration(path: Path | None) -> Config:
    """A file that was named must be there; the one at the default place need not be."""
    if path is None and not DEFAULT_PATH.exists():
        return Config()
    return load_config(path or DEFAULT_PATH)


def check_certificates(config: Config) -> None:
    """Raise RefusedError when other hosts are to connect here, and the certificates for it cannot
    be used.

    One that has expired stops nobody from starting: guests that a crash left over can still be
    settled on this host.
    """
    if not config.encryption.is_needed(config.listen.host):
        return
    now = datetime.datetime.now(datetime.UTC)
    context = Credentials(config.tls_directory, Side.SERVER).context()
    fault = expiry_fault(context, now)
    if fault:
        log.error("%s: other hosts will refuse it; issue a new one", fault)
    elif context.own.not_after - now < datetime.timedelta(days=WARN_DAYS):
        log.warning(
            "the certificate of this host, %s, ends on %s", context.own, context.own.not_after
        )


def _tell_sabotage() -> None:
    """Raises RefusedError when the environment asks for sabotage without saying why."""
    try:
        rules = requested_sabotage()
    except SabotageError as error:
        raise RefusedError(
            str(error), guest_state="", advice="it is for pageferry's own tests only"
        ) from error
    if rules:
        log.warning("SABOTAGE IS ON, guests will be lost: %s", ", ".join(rules))


def _set_up_logging(*, verbose: bool) -> None:
    """Plain lines on stderr; the journal adds time and unit by itself."""
    in_journal = "JOURNAL_STREAM" in os.environ
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=JOURNAL_FORMAT if in_journal else TERMINAL_FORMAT,
        stream=sys.stderr,
    )


@contextmanager
def state_directory(path: Path) -> Iterator[None]:
    """Make the state directory, private and locked for this daemon alone. Raises RefusedError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RefusedError(
            f"cannot use the state directory {path}: {error.strerror}",
            guest_state="",
            advice="run pageferryd as root, or set state-directory in [daemon]",
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(
                f"another pageferryd uses the state directory {path}",
                guest_state="",
                advice="stop it, or give this one a state-directory of its own",
            ) from error
        yield
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Sockets:
    control: socket.socket
    listeners: list[trio.SocketListener]


async def _open_sockets(config: Config) -> _Sockets:
    """All that can fail at start-up, before anything runs."""
    control = bind_control_socket(
        config.control_socket, config.control_socket_mode, config.read_only_gid
    )
    try:
        return _Sockets(control, await open_listeners(config.listen))
    except BaseException:
        control.close()
        config.control_socket.unlink(missing_ok=True)
        raise


async def run_daemon(
    config: Config,
    *,
    hooks: Hooks | None = None,
    worker_command: Sequence[str] = WORKER_COMMAND,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, then cancel what runs, wait for it, and return.

    Raises RefusedError when it cannot start. A second signal ends the waiting: workers whose daemon
    has gone cancel by themselves.
    """
    hooks = hooks or hooks_for(config.encryption)
    registry = Registry()
    server = ControlServer(registry, may_change=access_for(config.read_only_gid))
    supervisor = Supervisor(config, server.emit, hooks=hooks, worker_command=worker_command)
    Commands(config, supervisor, hooks, server.may_change).register(registry)
    sockets = await _open_sockets(config)
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                listener = Listener(config, supervisor, hooks)
                nursery.start_soon(listener.serve, sockets.listeners)
                nursery.start_soon(server.serve, sockets.control)
                log.info("listening on %s, control %s", config.listen, config.control_socket)
                task_status.started(supervisor)
                await _wait_for_the_end(
                    signals, supervisor, (listener.credentials, supervisor.credentials)
                )
                nursery.cancel_scope.cancel()
    finally:
        config.control_socket.unlink(missing_ok=True)


async def _wait_for_the_end(
    signals: AsyncIterator[int], supervisor: Supervisor, credentials: Sequence[Credentials]
) -> None:
    while (received := await anext(signals)) == signal.SIGHUP:
        _reload(credentials)
    log.info("%s: stopping", signal.Signals(received).name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_next, signals, nursery.cancel_scope)
        await supervisor.shutdown()
        nursery.cancel_scope.cancel()


def _reload(credentials: Sequence[Credentials]) -> None:
    """Changed files are noticed anyway, at the next connection; this tells at once what is wrong
    with them."""
    for each in credentials:
        try:
            each.reload()
        except CertificateFileError as error:
            log.error("SIGHUP: %s; %s", error, error.advice)


async def _cancel_at_next(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    while await anext(signals) == signal.SIGHUP:
        continue
    log.warning("not waiting any more; workers cancel by themselves")
    scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
