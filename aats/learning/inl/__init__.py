"""Learning on several nodes that see different views of the same samples (In-Network Learning)."""
