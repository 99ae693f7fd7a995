"""The destination's QEMU, started by its agent when a guest comes and none waits for it.

It is a process of its own that outlives worker and daemon, has none of their descriptors and
little of their environment, and is put into its cgroup before it allocates anything. Where the
agent is a service of systemd's, systemd starts it, in a service beside ours, and so outside of the
sandbox that was made for an agent.

Until the guest has been handed over, whoever gives the migration up ends it, with all that came
with it: its socket, RAM files that were not there before, a cgroup that was made for it. Afterwards
it is a guest like any other, and nobody's to end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from pageferry.kernel.cgroup import MemoryCgroup, memory_cgroup_named, memory_cgroup_of
from pageferry.kernel.identity import ProcessIdentity, process_identity
from pageferry.migration import service
from pageferry.migration.answering import answerer, listens
from pageferry.migration.journal import unrecorded_path
from pageferry.migration.launched import (
    POLL_S,
    TERM_S,
    AskedQemu,
    LaunchedQemu,
    remove_cgroup,
    remove_files,
    remove_socket,
)
from pageferry.model.errors import KernelFeatureError, RefusedError
from pageferry.model.launch import Launch
from pageferry.policy.command_line import ram_paths
from pageferry.policy.guest_service import (
    ServiceNameError,
    description_of,
    place_of,
    service_command,
)

log = logging.getLogger(__name__)

START_S: Final = 30.0
"""From exec to an answering monitor. The source waits 60 s for us."""

ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""All that it gets: ours has the worker's migration, and systemd's sockets."""

LAST_WORDS_CHARS: Final = 600
"""Of what it printed, for a message; the log has all."""


@asynccontextmanager
async def waiting_qemu(
    launch: Launch | None, qmp: str, guest: str, state_dir: Path, migration_id: str
) -> AsyncIterator[Launching]:
    """See to it that a QEMU listens at *qmp*: start one where none does and *launch* says how.

    On an error out of the block the QEMU that was started here is ended, unless it was `keep`-ed.
    Raises RefusedError when it does not start, with what it said.
    """
    launching = Launching(
        qmp,
        state_dir / "qemu" / f"{guest.replace('/', '_')}.log",
        unrecorded_path(state_dir, migration_id),
        migration_id,
    )
    try:
        if launch is not None and not listens(qmp):
            await launching.start(launch, guest)
        yield launching
    except BaseException:
        with trio.CancelScope(shield=True):
            await launching.undo()
        raise
    finally:
        launching.reap()


class Launching:
    """Starting one QEMU, and undoing that."""

    def __init__(self, qmp: str, log_path: Path, unrecorded: Path, migration_id: str) -> None:
        self.launched: LaunchedQemu | None = None
        """None: it was there before us."""
        self._qmp = qmp
        self._log_path = log_path
        self._unrecorded = unrecorded
        self._migration_id = migration_id
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup_before: MemoryCgroup | None = None
        self._cgroup_made: MemoryCgroup | None = None
        self._asked: AskedQemu | None = None
        self._main: ProcessIdentity | None = None
        self._new_files: list[str] = []
        self._is_kept = False

    def keep(self) -> None:
        """The guest may run in it from here on: it is not ours to end any more."""
        self._is_kept = True

    def release(self) -> None:
        """The guest certainly never runs in it after all."""
        self._is_kept = False

    async def start(self, launch: Launch, guest: str) -> None:
        """Start it and wait for its monitor. Raises RefusedError; `undo` is the caller's then."""
        program = launch.command[0]
        self._new_files = _absent(ram_paths(launch.command))
        try:
            if launch.in_service:
                await self._start_service(launch, guest)
            else:
                self._enter_cgroup(launch.cgroup)
                self._process = self._spawn(launch)
                self._note(self._process.pid)
                log.info("started %s for guest %s: process %d", program, guest, self._process.pid)
            pid = await self._answering(guest)
        except OSError as error:
            raise _refused(guest, f"{program}: {error.strerror}") from error
        except KernelFeatureError as error:
            raise _refused(guest, error.message) from error
        self.launched = self._note(pid)
        if self.launched is None:
            raise _refused(guest, f"it ended at once; {self._last_words()}")

    def recorded(self) -> None:
        """The journal says on disk what was started."""
        self._unrecorded.unlink(missing_ok=True)

    async def undo(self) -> None:
        """End what was started, unless it is kept."""
        if self._is_kept:
            return
        self._leave_cgroup()
        if self.launched is not None:
            if not await self.launched.end():
                return
        elif self._asked is not None:
            if not await self._asked.end():
                return
        elif self._process is not None:
            # Not answering yet, so it need not be QEMU: the process that we started, at least.
            self._process.kill()
            await trio.to_thread.run_sync(self._process.wait)
            remove_socket(self._qmp)
            remove_files(self._new_files)
        if self.launched is None and self._cgroup_made is not None:
            await remove_cgroup(self._cgroup_made.path)
        self._unrecorded.unlink(missing_ok=True)

    def reap(self) -> None:
        """Take notice of its end where it has ended; it is our child as long as we live."""
        if self._process is not None:
            self._process.poll()

    def _note(self, pid: int) -> LaunchedQemu | None:
        """What that process is, kept until the journal has it; None when it has ended."""
        identity = process_identity(pid)
        if identity is None:
            return None
        made = str(self._cgroup_made.path) if self._cgroup_made is not None else ""
        files = tuple(_files_of(self._new_files))
        name = self._asked.service.name if self._asked is not None else ""
        found = LaunchedQemu(identity, self._qmp, files, made, name)
        # All that may be there by the time that it is read.
        self._write_unrecorded({**found.as_notes(), "files": self._new_files})
        return found

    def _write_unrecorded(self, notes: Mapping[str, Any]) -> None:
        fresh = self._unrecorded.with_suffix(".launched-new")
        fresh.write_text(json.dumps(notes))
        fresh.rename(self._unrecorded)

    async def _start_service(self, launch: Launch, guest: str) -> None:
        """Have systemd start it. Raises RefusedError, OSError and KernelFeatureError."""
        try:
            name = place_of(launch, guest)[1]
            description = description_of(guest, self._migration_id)
            command = service_command(launch, guest, description, str(self._log_path), TERM_S)
        except ServiceNameError as error:
            raise _refused(guest, str(error)) from error
        # The worker goes into its cgroup later, and back when the guest is given up.
        self._cgroup_before = memory_cgroup_of(os.getpid())
        output = self._open_log()
        # Before it is asked: a worker that dies meanwhile leaves word of it.
        asked = AskedQemu(service.AskedFor(name, description), self._qmp, tuple(self._new_files))
        self._write_unrecorded(asked.as_notes())
        self._asked = asked
        try:
            status = await service.start(command, output, ENVIRONMENT)
        finally:
            os.close(output)
        if status:
            raise _refused(guest, f"systemd-run ended with status {status}; {self._last_words()}")
        self._main = await service.main_process(name)
        if self._main is None:
            raise _refused(guest, f"it ended at once; {self._last_words()}")
        self._cgroup_made = memory_cgroup_of(self._main.pid)
        self._note(self._main.pid)
        log.info("started %s for guest %s: process %d", name, guest, self._main.pid)

    def _open_log(self) -> int:
        """A descriptor of its log, begun anew."""
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        return os.open(self._log_path, flags, 0o600)

    def _spawn(self, launch: Launch) -> subprocess.Popen[bytes]:
        output = self._open_log()
        try:
            process = subprocess.Popen(
                launch.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                close_fds=True,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
                user=launch.uid,
                group=launch.gid,
                extra_groups=None if launch.uid is None else list(launch.groups),
            )
        finally:
            os.close(output)
        # The daemon's own protection from the OOM killer is not the guest's.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("0")
        return process

    async def _answering(self, guest: str) -> int:
        """The process that listens at the monitor's path, once one does. Raises RefusedError."""
        with trio.move_on_after(START_S):
            while (pid := await answerer(self._qmp)) is None:
                how = self._how_it_ended()
                if how:
                    raise _refused(guest, f"it ended{how}; {self._last_words()}")
                await trio.sleep(POLL_S)
            return pid
        raise _refused(
            guest, f"no monitor answers at {self._qmp} after {START_S:.0f} s; {self._last_words()}"
        )

    def _how_it_ended(self) -> str:
        """Empty while it has not."""
        if self._main is not None:
            return "" if self._main.is_alive else " at once"
        status = self._process.poll() if self._process is not None else None
        # What ends with 0 has handed QEMU on, as systemd-run does.
        if not status:
            return ""
        return f" with signal {-status}" if status < 0 else f" with exit status {status}"

    def _last_words(self) -> str:
        try:
            text = self._log_path.read_text(errors="replace").strip()
        except OSError:
            text = ""
        said = text[-LAST_WORDS_CHARS:] or "nothing"
        return f"it said: {said} (all of it is in {self._log_path})"

    def _enter_cgroup(self, name: str) -> None:
        """Go where it is to be: what we start then is there from its first page on. The worker
        joins the guest's cgroup in any case, to receive its RAM."""
        if not name:
            return
        cgroup = memory_cgroup_named(name)
        try:
            cgroup.path.mkdir()
        except FileExistsError:
            pass
        else:
            self._cgroup_made = cgroup
        self._cgroup_before = memory_cgroup_of(os.getpid())
        cgroup.join(os.getpid())

    def _leave_cgroup(self) -> None:
        if self._cgroup_before is not None:
            with contextlib.suppress(KernelFeatureError):
                self._cgroup_before.join(os.getpid())


def _absent(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not os.path.lexists(path)]


def _files_of(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if os.path.isfile(path)]


def _refused(guest: str, why: str) -> RefusedError:
    return RefusedError(
        f"the QEMU of guest {guest} could not be started here: {why}",
        advice=f"correct launch in [guests.{guest}] on the destination, or start it by hand",
    )
