"""The training loop: optimizer, schedule, Lightning module, run directory."""
