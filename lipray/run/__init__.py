"""A plan carried out over an executor."""
