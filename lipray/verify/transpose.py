"""The transposed sector form, whose Γ is a metric on the inputs of the form it was made from.

For a pair of inputs every neuron a has a slope δ_a in [0, 1] with Δu_a = δ_a Δv_a (any where Δv_a = 0). With
D = diag(δ) the increments are linear: Δy = J_D Δx, J_D = C_0 + C_u D (I - B_uu D)⁻¹ B_u0, where B_uu is strictly lower
triangular. The transposed form reads the outputs, runs through the layers from the last to the first by B_uuᵀ, and
ends at the inputs: for the same D its increments are J_Dᵀ.

Lemma. If M' ≻ 0 and Γ' ⪰ C' M'⁻¹ C'ᵀ for the transposed form (``lipray.verify.elimination``; any positive
multipliers), then ‖J_D z‖² <= zᵀ Γ' z for every z and every D, hence ‖f(x) - f(y)‖² <= (x - y)ᵀ Γ' (x - y).

Proof. Fix D and z. For an input q of the transposed form let s(q) be all of its signals, so that C' s(q) = J_Dᵀ q, and
s(q)ᵀ M' s(q) <= ‖q‖² by the sector conditions, which slopes in [0, 1] satisfy. Then
zᵀ J_Dᵀ q = zᵀ C' s(q) <= sqrt(zᵀ Γ' z) sqrt(s(q)ᵀ M' s(q)) <= sqrt(zᵀ Γ' z) ‖q‖, and q = J_D z gives the claim. ∎

That Δy' Δy'ᵀ ⪯ ‖q‖² Γ' for the transposed map alone would bound it along one direction at a time; the metric on the
inputs needs the inequality itself. In variables T = 1/λ this is the mirror recursion P <- Λ (2Λ - P)⁻¹ Λ that runs from
the outputs to the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

from lipray.verify.sector import Layer, SectorForm, Term


def transpose(form: SectorForm) -> SectorForm:
    """Outputs for inputs, layers from the last to the first, every matrix (and bound on its error) transposed.

    Transposing twice gives the form itself. Multipliers λ of the one belong to 1/λ of the other, layers reversed.
    """
    depth = len(form.layers)
    reads: list[list[Term]] = [[] for _ in range(depth + 1)]
    for index, terms in enumerate((*(layer.terms for layer in form.layers), form.output), start=1):
        reader = 0 if index > depth else depth + 1 - index
        for term in terms:
            error = None if term.error is None else term.error.T.tocsr()
            reads[term.source].append(Term(reader, term.matrix.T.tocsr(), error))
    layers = tuple(
        Layer(layer.name, layer.size, _sorted(reads[depth - place]))
        for place, layer in enumerate(reversed(form.layers))
    )
    return SectorForm(form.output_size, layers, _sorted(reads[0]), form.input_size, form.factor)


def _sorted(terms: Iterable[Term]) -> tuple[Term, ...]:
    return tuple(sorted(terms, key=lambda term: term.source))
