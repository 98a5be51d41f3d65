"""Around the models: configuration, data, checkpoints, metrics, distribution, pictures."""
