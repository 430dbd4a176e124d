"""Files on the disk: whole files that no kill leaves half written, locks, CSV, journals."""
