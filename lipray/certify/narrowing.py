"""A smaller inequality with the same optimum, where the input is wide."""

from __future__ import annotations

import torch

from lipray.certify.inequality import Inequality


def narrowed(form: Inequality) -> Inequality:
    """The same inequality with the input replaced by a square factor, where it is wider than what reads it.

    Slice by slice only products of two rows over the input matter (``lipray.certify.inequality.assemble``).
    """
    d = form.inputs
    heads = [place for place in form.places if place[1].start < d]
    readers = sorted({row for rows, _ in heads for row in range(rows.start, rows.stop)})
    outputs = form.C[..., :d] if bool((form.C[..., :d] != 0).any()) else form.C[:, :0, :d]
    width = len(readers) + outputs.shape[1]
    if not 0 < width < d:
        return form
    stack = torch.cat([form.B[:, readers, :d], outputs], dim=1)
    factor = torch.linalg.qr(stack.mH, mode="r").R.mH
    B = torch.cat([form.B.new_zeros(*form.B.shape[:2], width), form.B[..., d:]], dim=-1)
    B[:, readers, :width] = factor[:, : len(readers)]
    C = torch.cat([form.C.new_zeros(*form.C.shape[:2], width), form.C[..., d:]], dim=-1)
    if outputs.shape[1]:
        C[..., :width] = factor[:, len(readers) :]
    by = d - width
    rest = [(rows, slice(columns.start - by, columns.stop - by)) for rows, columns in form.places if columns.start >= d]
    mixed = [(rows, slice(0, columns.stop - by if columns.stop > d else width)) for rows, columns in heads]
    return Inequality(B, C, width, (*mixed, *rest))
