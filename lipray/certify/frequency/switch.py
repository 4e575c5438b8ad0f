"""Where the hybrid method leaves the torus: the planner's rule, under the name the solver knows it by."""

from lipray.partition.switch import choose_switch

__all__ = ["choose_switch"]
