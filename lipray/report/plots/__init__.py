"""Plots as SVG: plain values in, one figure out. matplotlib is imported here only."""
