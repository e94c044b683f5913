"""Quantized activations in a file: their levels, forms and ranges."""
