"""Parameter-efficient adapters of linear layers, behind one protocol."""
