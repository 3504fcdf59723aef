"""Backbones: one file each, with its settings, parameters, function and line for the registry."""
