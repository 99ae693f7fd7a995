"""Everything that asks the kernel: residency, write tracking, paging, cgroups, /proc, bulk copies.

The only user of the C extension.
"""
