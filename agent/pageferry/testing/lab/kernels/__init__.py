"""Kernels with and without the series in kernel-patches/: fetched, built, booted, and compared.

::

    series    which series there are, for which kernel, and a digest of each
    sources   Debian's source package of a kernel: whole, or only the files that are asked for
    applying  whether a series applies, and is in the kernel's style
    building  a small kernel with and without the series, and the selftest beside it
    image     an initial RAM disk: test programs, and Python with pageferry's own code
    booting   QEMU without KVM, and what the guest reported
    in_guest  runs in there: every way to tell residency against what was really done
    running   all of that for one series
    mutants   wrong variants of the patches, which the selftest must catch
    record    what came out, kept beside the patches
    report    the same as tables

``python -m pageferry.testing.lab.kernels --help`` is what ``make kernel-test`` calls.
"""
