"""Certified Lipschitz constants of convolutional networks, from a laptop to a Ray cluster."""

__version__ = "0.1.0"
