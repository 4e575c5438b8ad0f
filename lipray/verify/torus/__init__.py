"""Maps on tori: where they lie, their frequencies, and the proof of a bound there."""
