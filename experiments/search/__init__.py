"""Looking for better settings on the validation rows."""
