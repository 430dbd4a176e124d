"""Trunks: what stands between the language model and the structure module."""
