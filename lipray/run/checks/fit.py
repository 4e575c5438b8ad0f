"""What fits: built-in networks that the planner does not cut where one sub-problem may take so much memory."""

from __future__ import annotations

from lipray.run.checks.findings import Finding, good, warning

WHOLE = (
    ("lenet5", "1×28×28", 12),
    ("resnet18-cifar", "3×32×32", 234),
    ("resnet18", "3×224×224", 388),
    ("vgg16-cifar", "3×32×32", 1760),
    ("resnet50", "3×224×224", 2992),
    ("resnet101", "3×224×224", 3392),
    ("vgg16", "3×224×224", 4256),
)
"""Networks, their inputs, and the MiB from which on ``lipray plan`` leaves them whole; a test plans them."""
WORKER = 300
"""MiB a worker takes before it solves anything."""


def fit(memory: int, where: str) -> Finding:
    """The finding for ``memory`` bytes on the largest node, or wherever ``where`` says."""
    name, mebibytes = "what fits", memory / 2**20 - WORKER
    whole = [network for network, _, needed in WHOLE if needed <= mebibytes]
    cut = [
        f"{network} ({shape}, needs {needed + WORKER} MiB)" for network, shape, needed in WHOLE if needed > mebibytes
    ]
    text = f"{memory / 2**30:.1f} GiB {where}: whole, with as much --memory, {', '.join(whole) or 'nothing'}"
    if cut:
        text += f"; cut into blocks, {', '.join(cut)}"
    if whole:
        return good(name, text)
    return warning(name, text, "Give the node more memory; --method product needs next to none.")
