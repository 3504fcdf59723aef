"""Raw files as the engine reads them."""
