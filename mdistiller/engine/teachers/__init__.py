"""Published teachers: download, verification and conversion."""
