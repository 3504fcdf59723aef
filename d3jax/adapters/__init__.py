"""Loss adapters: one file each, with its settings and its line for the registry."""
