"""What a bound says about labelled data: certified radii, and an attack beside them."""
