"""Run folders as records: found, read, matched with a configuration; the paper's tables as data. Needs no torch."""
