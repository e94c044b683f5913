"""What can be said of a model: sizes, operations, codes, sensitivity, bits, plots."""
