"""Teacher outputs stored on disk and shared by all runs."""
