"""The embedding table's rows in training, and how they are updated."""
