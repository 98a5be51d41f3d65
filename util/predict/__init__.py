"""Pictures of one's own: the predictor and the files that it reads and writes."""
