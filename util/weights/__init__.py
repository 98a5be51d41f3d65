"""Trained weights: what they belong to (identity), the model they make (load)."""
