"""Checkpoints that a killed run resumes from bit for bit."""
