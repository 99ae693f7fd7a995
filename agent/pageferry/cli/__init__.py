"""The ``pageferry`` command."""
