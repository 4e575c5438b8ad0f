"""Lipschitz-aware training: layers, differentiable bounds, losses, and the loop."""
