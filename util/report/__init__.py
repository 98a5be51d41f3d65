"""Over all runs: one table a data set and shot, and how much runs differ."""
