"""From the reference to a bundle of fixed-shape graphs, with the proof that both compute the same."""
