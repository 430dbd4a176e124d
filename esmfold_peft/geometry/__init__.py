"""Parameter-free geometry in PyTorch: rigid frames, torsion angles, atom layouts. float32, Å."""
