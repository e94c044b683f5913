"""Whether a file computes what its Keras model does, and where not."""
