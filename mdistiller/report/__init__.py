"""Tables and figures from run folders and analysis files. Never imports torch."""
