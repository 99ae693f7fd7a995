"""Pure data: RAM blocks, page runs, residency, statistics, phases and errors. No effects."""
