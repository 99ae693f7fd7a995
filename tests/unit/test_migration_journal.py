"""The journal: complete records only, in a legal order, and on disk before the call returns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pageferry.migration.journal import (
    Journal,
    JournalBusyError,
    JournalError,
    journal_path,
    read_journal,
)
from pageferry.model.errors import LocalProtocolError
from pageferry.model.phase import DestinationPhase, SourcePhase

ID = "0123456789abcdef"


async def _journal(state_dir: Path) -> Journal:
    journal = Journal.create(state_dir, ID, "source")
    await journal.record(SourcePhase.LOOK, guest="g1", qmp="/run/g1.qmp")
    return journal


async def test_notes_add_up_and_the_last_phase_counts(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    await journal.record(SourcePhase.ARM)
    await journal.record(SourcePhase.FAILED, reason="why")
    journal.close()
    state = read_journal(journal.path)
    assert state is not None
    assert (state.phase, state.role, state.migration_id) == ("failed", "source", ID)
    assert state.notes == {"guest": "g1", "qmp": "/run/g1.qmp", "reason": "why"}


@pytest.mark.parametrize("torn", [b"{", b'{"migration-id":"0123', b"\0" * 700])
async def test_line_cut_short_by_a_crash_is_ignored_and_cut_off(
    tmp_path: Path, torn: bytes
) -> None:
    journal = await _journal(tmp_path)
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    state = read_journal(journal.path)
    assert state is not None
    assert state.phase == "look"
    again, reread = Journal.reopen(journal.path)
    assert reread == state
    await again.record(SourcePhase.FAILED)
    again.close()
    after = read_journal(journal.path)
    assert after is not None
    assert after.phase == "failed"


async def test_every_record_is_synced_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = await _journal(tmp_path)
    assert synced[-1] == journal.path.stat().st_size
    assert len(synced) == 2, "the directory, for the name, and the record"
    journal.close()


async def test_illegal_phase_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    before = journal.path.read_bytes()
    with pytest.raises(LocalProtocolError):
        await journal.record(SourcePhase.COMMIT)
    assert journal.path.read_bytes() == before
    assert journal.phase == "look"
    journal.close()


async def test_a_migration_is_not_journalled_twice(tmp_path: Path) -> None:
    (await _journal(tmp_path)).close()
    with pytest.raises(JournalError, match="tried before"):
        Journal.create(tmp_path, ID, "source")
    other = Journal.create(tmp_path, ID, "destination")
    await other.record(DestinationPhase.READY)
    other.close()


async def test_full_disk_is_an_error_and_the_phase_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await _journal(tmp_path)
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data) // 2)
    with pytest.raises(JournalError, match="No space left"):
        await journal.record(SourcePhase.ARM)
    assert journal.phase == "look"
    journal.close()


@pytest.mark.parametrize("name", ["../x", "", "a/b", "G" * 16, "0" * 65, "1234567"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(JournalError):
        journal_path(tmp_path, name, "source")


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"{}\n", b"[]\n", b'{"role":"source","phase":"nonsense","notes":{}}\n', b"\xff\n"],
)
def test_garbage_is_told_and_nothing_else(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / f"{ID}.source.journal"
    path.write_bytes(garbage)
    with pytest.raises(JournalError):
        read_journal(path)


def test_an_empty_journal_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / f"{ID}.source.journal"
    path.write_bytes(b"")
    assert read_journal(path) is None


async def test_what_a_failed_write_left_behind_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await _journal(tmp_path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[: len(data) // 2]))
    with pytest.raises(JournalError, match="No space left"):
        await journal.record(SourcePhase.ARM)
    monkeypatch.undo()
    await journal.record(SourcePhase.FAILED)
    journal.close()
    state = read_journal(journal.path)
    assert state is not None
    assert state.phase == "failed"
    assert journal.path.read_bytes().count(b"\n") == 2


async def test_a_journal_that_cannot_be_repaired_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    journal = await _journal(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(JournalError, match="Input/output"):
        await journal.record(SourcePhase.ARM)
    monkeypatch.undo()
    with pytest.raises(JournalError, match="could not be repaired"):
        await journal.record(SourcePhase.FAILED)
    journal.close()


async def test_one_at_a_time_works_on_a_journal(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    with pytest.raises(JournalBusyError):
        Journal.reopen(journal.path)
    state = read_journal(journal.path)
    assert state is not None, "reading is free"
    journal.close()
    again, _state = Journal.reopen(journal.path)
    with pytest.raises(JournalBusyError):
        Journal.reopen(journal.path)
    again.close()


@pytest.mark.parametrize("offset", [5, 40, 80, -4, -20])
async def test_a_flipped_bit_is_noticed(tmp_path: Path, offset: int) -> None:
    journal = await _journal(tmp_path)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[offset] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(JournalError, match="line 1"):
        read_journal(journal.path)


async def test_phases_that_cannot_follow_each_other_are_no_journal(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    journal.phase = SourcePhase.DEVICE.value
    await journal.record(SourcePhase.COMMIT)
    journal.close()
    with pytest.raises(JournalError, match="commit cannot follow look"):
        read_journal(journal.path)


async def test_a_journal_under_another_name_is_none(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    journal.close()
    moved = journal.path.rename(tmp_path / f"{'f' * 16}.source.journal")
    with pytest.raises(JournalError, match="another migration"):
        read_journal(moved)


async def test_a_journal_is_no_symlink(tmp_path: Path) -> None:
    journal = await _journal(tmp_path)
    journal.close()
    link = tmp_path / f"{'e' * 16}.source.journal"
    link.symlink_to(journal.path)
    with pytest.raises(JournalError):
        read_journal(link)
    with pytest.raises(JournalError):
        Journal.reopen(link)
