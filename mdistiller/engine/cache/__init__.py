"""Teacher outputs that are stored once for all runs."""
