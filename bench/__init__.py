"""Questions about speed, one per file; each prints JSON with the machine it was asked on."""
