"""The control socket that speaks QMP, and its client."""
