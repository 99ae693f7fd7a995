"""What a process can do in the units' sandbox. Run as a unit like the shipped one; prints JSON.

For each attempt: ``allowed``, ``empty`` for a file or folder that shows nothing, or the error. What
succeeds is undone or harmless; system calls that would not be have arguments that make no sense.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

STATE = Path(os.environ.get("STATE_DIRECTORY", "/nowhere"))

CALLS = {
    # number, arguments (x86-64)
    "finit_module": (313, -1, 0, 0),
    "init_module": (175, 0, 0, 0),
    "delete_module": (176, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "pivot_root": (155, 0, 0),
    "swapon": (167, 0, 0),
    "swapoff": (168, 0),
    "reboot": (169, 0, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 0, 0),
    "clock_settime": (227, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "setuid": (105, 1),
    "setgroups": (116, 0, 0),
    "iopl": (172, 3),
    "process_vm_writev": (311, 0, 0, 0, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "unshare a user namespace": (272, 0x10000000),
    "unshare a mount namespace": (272, 0x00020000),
    "personality": (135, 8),
    "sched_setscheduler": (144, 0, 1, 0),
    # What the agent needs.
    "cachestat": (451, -1, 0, 0, 0),
    "ptrace": (101, 0x4206, 0x7FFFFFFF, 0, 0),
    "pidfd_getfd": (438, -1, 0, 0),
    "userfaultfd": (323, 1),
}


def call(number: int, *arguments: int) -> str:
    """Make a system call; EFAULT, EBADF and their like tell that the sandbox let it through."""
    words = [ctypes.c_long(argument) for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return "allowed" if result >= 0 else name_of(ctypes.get_errno())


def name_of(number: int) -> str:
    """As in EPERM."""
    return errno.errorcode.get(number, str(number))


def write(path: str) -> Callable[[], object]:
    """Append nothing to a file, made if missing."""

    def attempt() -> None:
        existed = os.path.exists(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        if not existed:
            os.unlink(path)

    return attempt


def join_mounts_of_init() -> None:
    """Enter the first process's mount namespace."""
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    try:
        if libc.setns(fd, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def write_and_execute() -> None:
    """Memory that can be written and executed."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mmap.mmap(-1, 4096, flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def own_file(change: Callable[[Path], object]) -> Callable[[], object]:
    """Try something on a file of one's own."""

    def attempt() -> None:
        path = STATE / "own"
        path.touch()
        try:
            change(path)
        finally:
            path.unlink()

    return attempt


def trace(pid: int) -> None:
    """Begin to trace a process, and let it go."""
    if libc.ptrace(0x4206, pid, 0, 0):  # PTRACE_SEIZE
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    libc.ptrace(0x4207, pid, 0, 0)  # PTRACE_INTERRUPT
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, 0, 0)  # PTRACE_DETACH


ATTEMPTS: dict[str, Callable[[], object]] = {
    "write /etc": write("/etc/pageferry-was-here"),
    "write /usr": write("/usr/pageferry-was-here"),
    "write /var/lib": write("/var/lib/pageferry-was-here"),
    "write /run": write("/run/pageferry-was-here"),
    "write /proc/sys": write("/proc/sys/vm/swappiness"),
    "write /sys/kernel": write("/sys/kernel/mm/transparent_hugepage/enabled"),
    "write a cgroup": write("/sys/fs/cgroup/system.slice/cgroup.procs"),
    "write its own state": write(str(STATE / "was-here")),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_bytes(),
    "list /root": lambda: os.listdir("/root"),
    "list /home": lambda: os.listdir("/home"),
    "list /boot": lambda: os.listdir("/boot"),
    "open a disk": lambda: os.close(os.open("/dev/vda", os.O_RDONLY)),
    "open /dev/mem": lambda: os.close(os.open("/dev/mem", os.O_RDONLY)),
    "open /dev/kmsg": lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "a vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
    "a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "set-user-ID": own_file(lambda path: path.chmod(0o4755)),
    "give a file away": own_file(lambda path: os.chown(path, 1, 1)),
    "make a device": lambda: os.mknod(STATE / "device", 0o20600, os.makedev(1, 3)),
    "write and execute memory": write_and_execute,
    "join the mounts of init": join_mounts_of_init,
    "signal a process of another user": lambda: os.kill(int(os.environ["OTHERS_PID"]), 0),
    "trace a process of root": lambda: trace(int(os.environ["ROOTS_PID"])),
    "write /etc as init sees it": write("/proc/1/root/etc/pageferry-was-here"),
}


def outcome(attempt: Callable[[], object]) -> str:
    """How it went."""
    try:
        result = attempt()
    except OSError as error:
        return name_of(error.errno or 0)
    return "empty" if result in (b"", []) else "allowed"


def main() -> None:
    """Try everything."""
    found = {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
    found |= {name: call(*words) for name, words in CALLS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
