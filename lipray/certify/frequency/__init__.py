"""Shape matrices on the torus: one small Hermitian problem per spatial frequency, multipliers shared per channel."""
