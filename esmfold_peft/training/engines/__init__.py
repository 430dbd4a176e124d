"""The processes that train together: launchers, DeepSpeed, sharded state."""
