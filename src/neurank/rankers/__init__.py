"""One file per method: arithmetic on observations."""
