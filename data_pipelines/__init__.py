"""Raw files -> prepared columns -> batches."""
