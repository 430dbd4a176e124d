"""The commands `search`, `search status` and `search report`."""
