"""Functions from a model to a model: quantize, strip, copy, distill, re-estimate."""
