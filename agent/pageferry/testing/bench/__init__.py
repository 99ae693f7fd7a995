"""`make bench`: pageferry, QEMU's own migration and the machine's limits, measured in one run."""
