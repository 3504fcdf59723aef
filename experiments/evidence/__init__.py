"""Evidence of D3 on data whose truth is known."""
