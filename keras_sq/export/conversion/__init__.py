"""From a Keras model to a TFLite file: inputs, float and integer conversion."""
