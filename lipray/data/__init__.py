"""Labelled examples, read from files and checked."""
