"""The lab: real QEMUs, real swap, real cgroups and real disks on one host, for tests and the demo.

Everything here needs Debian and mostly root. Whatever a part switches on, it switches off again,
also when the work in between fails or is interrupted.
"""
