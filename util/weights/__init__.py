"""Weights: files read without running anything, layouts of others, what they belong to, exports."""

from util.weights.checkpoint import load_weights, read_checkpoint
from util.weights.load import load_model, model_of, weight_file

__all__ = ["load_model", "load_weights", "model_of", "read_checkpoint", "weight_file"]
