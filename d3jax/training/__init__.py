"""Loss, optimiser, the mapped step, checkpoints and the loop."""
