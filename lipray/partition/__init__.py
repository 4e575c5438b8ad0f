"""From a network to a plan of blocks and tiles."""
