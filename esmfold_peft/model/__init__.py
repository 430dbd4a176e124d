"""The folding model: language model, trunk, structure module, heads."""
