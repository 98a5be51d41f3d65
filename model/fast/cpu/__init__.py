"""Forms that pay on processors only."""
