"""The edges: the terminal, the run's journal, signals and how a command ends."""
