"""Scoring of predicted structures: what belongs together, its scores, and what is made of them."""
