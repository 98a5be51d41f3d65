"""Weights: files read without running anything, layouts of others, what they belong to, exports.

Nothing is imported here: what ONNX files say of themselves is read without PyTorch.
"""
