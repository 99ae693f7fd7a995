"""pageferryd as a process of its own, with fake workers: ``python -m tests.support.daemon_process
CONFIG RECORD``, where RECORD gets every packet that a worker is sent."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import trio

from pageferry.daemon.config import load_config
from pageferry.daemon.main import run_daemon, state_directory
from pageferry.daemon.systemd import ServiceManager
from pageferry.logs import set_up_logging
from tests.support.daemon_bench import WORKER, FakeHooks


def main() -> None:
    """Run until a signal."""
    path, record = Path(sys.argv[1]), sys.argv[2]
    set_up_logging("pageferryd")
    manager = ServiceManager.from_environment(os.environ)
    config = load_config(path)
    fake = FakeHooks()
    fake.answer = [{"role": "source", "phase": "failed", "settled": True, "message": "settled"}]
    with state_directory(config.state_directory):
        trio.run(
            partial(
                run_daemon,
                config,
                hooks=fake.hooks(),
                worker_command=(sys.executable, WORKER, "--record", record),
                manager=manager,
                reread=partial(load_config, path),
            )
        )


if __name__ == "__main__":
    main()
