"""How good a predicted structure is."""
