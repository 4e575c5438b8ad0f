"""Sub-problem in, certificate out: one file per method."""
