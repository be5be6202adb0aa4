"""Figures: tensors or arrays in, numbers out."""
