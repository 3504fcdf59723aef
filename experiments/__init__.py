"""Presets, commands, tables, figures and benchmarks."""
