"""Raw values and what they become: one rule for training and serving."""
