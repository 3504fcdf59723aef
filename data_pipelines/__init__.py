"""Raw files -> prepared directories."""
