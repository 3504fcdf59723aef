"""Charts that more than one room draws."""
