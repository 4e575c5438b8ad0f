"""Exported programs (``.pt2``) as modules that take a batch of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lipray.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_VIEWS = ("aten::view", "aten::reshape", "aten::_unsafe_view")


def open_exported(path: Path) -> nn.Module:
    """Load a program; opening it runs code, so the caller must vouch for the file.

    ``torch.export`` fixes the batch size of its example input unless told otherwise, and writes it into
    every view. Such a program is freed of it: per input it stays the same function, and the import
    compares inputs one at a time as well as in a batch.

    Raises:
        ModelError: The file cannot be read, or the program has several inputs or none.
    """
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:  # noqa: BLE001 - whatever the file makes torch raise is the file's fault
        why = f"torch.export.load failed: {type(error).__name__}: {error}"
        raise ModelError(str(path), why, hint="Export the model again.") from None
    if len(program.graph_signature.user_inputs) != 1 or len(program.graph_signature.user_outputs) != 1:
        raise ModelError(
            str(path), "the program has several inputs or outputs", hint="Export a model with one input and one output."
        )
    return _free_of_batch(program)


def _free_of_batch(program: ExportedProgram) -> nn.Module:
    from torch import fx

    module = program.module()
    entry = next(node for node in module.graph.nodes if node.op == "placeholder")
    sizes = getattr(entry.meta.get("val"), "shape", ())
    if not sizes or not isinstance(sizes[0], int):
        return module
    batch = sizes[0]
    # A new GraphModule carries the graph and the weights, not the guards on the input's shape.
    free = fx.GraphModule(module, module.graph)
    for node in list(free.graph.nodes):
        name = getattr(node.target, "name", lambda: "")() if node.op == "call_function" else ""
        if name.split(".")[0] in _VIEWS:
            shape = tuple(node.meta["val"].shape)
            if shape and shape[0] == batch:
                node.args = (node.args[0], [-1, *shape[1:]])
        elif getattr(node.target, "__name__", "") == "_guards_fn" or node.target == "_guards_fn":
            free.graph.erase_node(node)
    free.recompile()
    return free
