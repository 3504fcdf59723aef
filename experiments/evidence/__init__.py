"""What D3 does on data whose truth is known."""
