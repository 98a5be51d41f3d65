"""Measurements: everything as a ratio taken in one process, alternating, warm, medians."""
