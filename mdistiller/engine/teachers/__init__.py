"""Published teachers: found, fetched, verified."""
