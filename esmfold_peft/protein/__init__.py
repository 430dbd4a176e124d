"""Proteins as data: residue tables, structures, and their files (NumPy only)."""
