"""The QMP-speaking control socket and its client."""
