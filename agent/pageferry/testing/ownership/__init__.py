"""The ownership protocol, explored: a world of two agents, two QEMUs and a network around the
tables of ``policy.ownership``, a checker that visits all of it, and wrong variants that it must
catch."""
