"""Where bytes come from first: one port, an origin per scheme behind it."""
