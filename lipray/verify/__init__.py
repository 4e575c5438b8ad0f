"""What a bound rests on: cuts, linear maps, the inequality and its proof, composition, and the certificate itself."""
