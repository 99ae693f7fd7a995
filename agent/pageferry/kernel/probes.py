"""One harmless probe for each thing that a migration needs from the kernel.

Probes try; they compare no versions. Each takes a few milliseconds at most and leaves nothing
behind.
"""

from __future__ import annotations

import errno
import os
import subprocess

from pageferry.kernel import procfs
from pageferry.kernel._native import ffi, lib
from pageferry.kernel.cgroup import memory_cgroup_of
from pageferry.kernel.injection import take_userfaultfd
from pageferry.kernel.pageset import PageSet
from pageferry.kernel.probe_result import Degree, ProbeResult
from pageferry.kernel.residency import ProbeMemory, describe_way, probe_readers, swap_is_on
from pageferry.kernel.tracking import AddressRange, mapped_pages
from pageferry.model.errors import KernelFeatureError, PageferryError, RefusedError

__all__ = ["Degree", "ProbeResult", "probe"]


def probe() -> list[ProbeResult]:
    """Everything a migration needs; then which way tells residency; then each of the ways."""
    ways = probe_readers()
    return [
        _probe_write_protection(),
        _probe_pagemap_scan(),
        _probe_injection(),
        _probe_page_out(),
        _probe_memory_cgroup(),
        describe_way(ways),
        *ways,
    ]


def _probe_write_protection() -> ProbeResult:
    name = "userfaultfd-wp-async"
    fd = ffi.new("int *")
    error = lib.pf_uffd_open(fd)
    if error == errno.ENOSYS:
        return ProbeResult(
            name, Degree.ABSENT, "this kernel has no userfaultfd (CONFIG_USERFAULTFD)"
        )
    if error:
        return ProbeResult(name, Degree.DENIED, f"{os.strerror(error)}; a seccomp filter?")
    features = ffi.new("uint64_t *")
    error = lib.pf_uffd_enable(fd[0], features)
    os.close(fd[0])
    if error:
        reason = "userfaultfd has no asynchronous write protection; it needs Linux 6.7"
        return ProbeResult(name, Degree.ABSENT, reason)
    return ProbeResult(name, Degree.SUPPORTED, "asynchronous write protection of shared memory")


def _probe_pagemap_scan() -> ProbeResult:
    name = "pagemap-scan"
    entry = procfs.maps_of(os.getpid())[0]
    pages = PageSet((entry.end - entry.start) // 4096)
    try:
        mapped_pages(os.getpid(), AddressRange(entry.start, entry.end), pages, 0)
    except KernelFeatureError:
        return ProbeResult(name, Degree.ABSENT, "PAGEMAP_SCAN is missing; it needs Linux 6.7")
    except (OSError, PageferryError) as error:
        return ProbeResult(name, Degree.DENIED, f"{error}")
    return ProbeResult(name, Degree.SUPPORTED, "PAGEMAP_SCAN answers")


def _probe_injection() -> ProbeResult:
    """The real thing, on a child that waits for the end of its input."""
    name = "userfaultfd-injection"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            uffd, held_ns = take_userfaultfd(child.pid, ())
        except KernelFeatureError as error:
            return ProbeResult(name, Degree.ABSENT, f"{error}; {error.advice}")
        except RefusedError as error:
            return ProbeResult(name, Degree.DENIED, f"{error}; {error.advice}")
    os.close(uffd)
    return ProbeResult(name, Degree.SUPPORTED, f"a process was held for {held_ns // 1000} us")


def _probe_page_out() -> ProbeResult:
    name = "page-out"
    if not swap_is_on():
        return ProbeResult(name, Degree.ABSENT, "no swap is on: nothing can be paged out")
    try:
        with ProbeMemory() as memory:
            memory.page_out()
            out = memory.pages_out()
    except OSError as error:
        return ProbeResult(name, Degree.DENIED, f"{error.strerror}; a seccomp filter?")
    if not out:
        reason = "MADV_PAGEOUT moved nothing; is swap full, or forbidden by a cgroup?"
        return ProbeResult(name, Degree.ABSENT, reason)
    return ProbeResult(name, Degree.SUPPORTED, "MADV_PAGEOUT moves pages to swap")


def _probe_memory_cgroup() -> ProbeResult:
    name = "memory-cgroup"
    try:
        cgroup = memory_cgroup_of(os.getpid())
        cgroup.headroom_bytes()
    except KernelFeatureError as error:
        return ProbeResult(name, Degree.ABSENT, f"{error}; {error.advice}")
    except OSError as error:
        return ProbeResult(name, Degree.DENIED, f"{error}")
    if not os.access(cgroup.path / "cgroup.procs", os.W_OK):
        return ProbeResult(name, Degree.DENIED, f"{cgroup.path} is not ours to write; run as root")
    return ProbeResult(name, Degree.SUPPORTED, f"version {cgroup.version}")
