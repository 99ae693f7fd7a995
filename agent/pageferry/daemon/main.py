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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from pageferry import __version__
from pageferry.certificates.files import Side
from pageferry.certificates.inspection import WARN_DAYS
from pageferry.control.registry import Registry
from pageferry.control.server import ControlServer, bind_control_socket
from pageferry.daemon.access import access_for
from pageferry.daemon.commands import Commands
from pageferry.daemon.config import DEFAULT_PATH, Config, load_config
from pageferry.daemon.hooks import Hooks, hooks_for
from pageferry.daemon.listener import Listener, open_listeners
from pageferry.daemon.metrics import Metrics
from pageferry.daemon.metrics_server import MetricsServer, open_metrics_listeners, remove
from pageferry.daemon.reloading import Reloader
from pageferry.daemon.supervisor import Supervisor
from pageferry.daemon.systemd import ServiceManager
from pageferry.daemon.worker_process import WORKER_COMMAND
from pageferry.logs import set_up_logging
from pageferry.model.errors import PageferryError, RefusedError
from pageferry.net.encryption import Credentials
from pageferry.net.tls import expiry_fault
from pageferry.testing.faults import FaultsError, requested_faults

log = logging.getLogger("pageferryd")

CONTROL_SOCKET_NAME = "control"
AGENT_SOCKET_NAME = "agent"
"""FileDescriptorName= of the sockets that systemd may listen on for us."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon. Returns its exit status: 0 after a signal, 1 when it cannot start."""
    arguments = make_parser().parse_args(argv)
    set_up_logging("pageferryd", verbose=arguments.verbose)
    manager = ServiceManager.from_environment(os.environ)

    def read_configuration() -> Config:
        return _configuration(arguments.config)

    try:
        _tell_faults()
        config = read_configuration()
        check_certificates(config)
        if arguments.check:
            print("the configuration is fine")
            return 0
        with state_directory(config.state_directory):
            trio.run(
                partial(
                    run_daemon,
                    config,
                    keep_spare=True,
                    manager=manager,
                    reread=read_configuration,
                )
            )
    except PageferryError as error:
        print(f"pageferryd: {error.message}", file=sys.stderr)
        if error.advice:
            print(f"pageferryd: {error.advice}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line, from which help and manual are made."""
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


def _tell_faults() -> None:
    """Raises RefusedError when the environment asks for faults without saying why."""
    try:
        faults = requested_faults()
    except FaultsError as error:
        raise RefusedError(
            str(error), guest_state="", advice="it is for pageferry's own tests only"
        ) from error
    if faults:
        log.warning("FAULTS ARE ON, guests will be lost: %s", ", ".join(faults))


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
            advice="run pageferryd as root, or set state-directory in [daemon]; in a sandbox of"
            " systemd's, name it there too (StateDirectory=)",
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
    metrics: list[trio.SocketListener]
    owned_path: Path | None
    """The control socket's, where it is ours to remove at the end and not systemd's."""


async def _open_sockets(config: Config, manager: ServiceManager) -> _Sockets:
    """All that can fail at start-up, before anything runs. What systemd listens on is taken over:
    a socket named ``control``, and any named ``agent``."""
    passed = [socket.socket(fileno=fd) for _name, fd in manager.take(CONTROL_SOCKET_NAME)]
    agents = [socket.socket(fileno=fd) for _name, fd in manager.take(AGENT_SOCKET_NAME)]
    owned_path = None
    if passed:
        control = passed[0]
    else:
        control = bind_control_socket(
            config.control_socket, config.control_socket_mode, config.read_only_gid
        )
        owned_path = config.control_socket
    try:
        if agents:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(s)) for s in agents]
        else:
            listeners = await open_listeners(config.listen)
        metrics = []
        if config.metrics_listen is not None:
            metrics = await open_metrics_listeners(config.metrics_listen)
    except BaseException:
        control.close()
        if owned_path is not None:
            owned_path.unlink(missing_ok=True)
        raise
    return _Sockets(control, listeners, metrics, owned_path)


async def run_daemon(
    config: Config,
    *,
    hooks: Hooks | None = None,
    worker_command: Sequence[str] = WORKER_COMMAND,
    keep_spare: bool = False,
    manager: ServiceManager | None = None,
    reread: Callable[[], Config] | None = None,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Without systemd, and at SIGINT, what runs is cancelled then and waited for; a second signal ends
    the waiting. At SIGTERM under systemd migrations go on: systemd keeps their links for the next
    daemon, or closes them, which cancels them, when there is to be none. SIGHUP reads the
    configuration again (*reread*). Raises RefusedError when it cannot start.
    """
    hooks, manager = hooks or hooks_for(config.encryption), manager or ServiceManager()
    registry = Registry()
    server = ControlServer(registry, may_change=access_for(config.read_only_gid))
    supervisor = Supervisor(
        config,
        server.emit,
        hooks=hooks,
        worker_command=worker_command,
        keep_spare=keep_spare,
        manager=manager,
    )
    metrics = Metrics(supervisor.migrations, lambda: server.clients, supervisor.leftovers.count)
    server.observe = lambda name, succeeded: metrics.command(name, succeeded=succeeded)
    supervisor.workers.on_end = metrics.ended
    Commands(config, supervisor, hooks, server.may_change).register(registry)
    sockets = await _open_sockets(config, manager)
    signal_numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        with trio.open_signal_receiver(*signal_numbers) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                manager.close_rest()
                listener = Listener(config, supervisor, hooks)
                nursery.start_soon(listener.serve, sockets.listeners)
                nursery.start_soon(server.serve, sockets.control)
                if sockets.metrics:
                    nursery.start_soon(MetricsServer(metrics.registry).serve, sockets.metrics)
                nursery.start_soon(manager.feed_watchdog)
                log.info("listening on %s, control %s", config.listen, config.control_socket)
                manager.ready(f"listening on {config.listen}")
                task_status.started(supervisor)
                credentials = (listener.credentials, supervisor.credentials)
                reloader = Reloader(supervisor, manager, reread, credentials)
                await _obey(signals, supervisor, manager, reloader)
                nursery.cancel_scope.cancel()
    finally:
        if sockets.owned_path is not None:
            sockets.owned_path.unlink(missing_ok=True)
        remove(config.metrics_listen)


async def _obey(
    signals: AsyncIterator[int], supervisor: Supervisor, manager: ServiceManager, reloader: Reloader
) -> None:
    """Until the daemon is to end."""
    received = await anext(signals)
    while received == signal.SIGHUP:
        await reloader.reload()
        received = await anext(signals)
    name = signal.Signals(received).name
    log.info("%s: stopping", name)
    manager.stopping(f"{name}: stopping")
    if received == signal.SIGTERM and manager.is_there:
        await supervisor.hand_over()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_next, signals, nursery.cancel_scope)
        await supervisor.shutdown()
        nursery.cancel_scope.cancel()


async def _cancel_at_next(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    while await anext(signals) == signal.SIGHUP:
        continue
    log.warning("not waiting any more; workers cancel by themselves")
    scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
