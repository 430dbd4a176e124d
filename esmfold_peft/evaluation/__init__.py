"""Scoring of predicted structures: pairs of chains, their scores, and the results."""
