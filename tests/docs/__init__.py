"""The documents are tested like code: what they link to, say to run and name must be there."""
