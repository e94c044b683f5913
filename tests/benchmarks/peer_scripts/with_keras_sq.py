"""This package: quantized directly, and by stochastic quantization."""

import harness

import keras_sq


def preset(method):
    """Returns what the package calls the method: `"ternary"`, `"ternary-sq"`, ..."""
    quantizer, _, stochastic = method.partition("-")
    if stochastic:
        schedule = keras_sq.callbacks.StochasticQuantization().schedule
        settings = {"skip": (), "overrides": {}}
        return keras_sq.presets.stochastic(quantizer, schedule, **settings)
    return keras_sq.presets.direct(quantizer, skip=())


def make(work, method):
    """Quantizes all kernels of the float network."""
    return preset(method).quantize_model(work.network(), seed=work.seed)


def callbacks(method, work):
    """Returns the one that redraws the masks, with the package's schedule."""
    return preset(method).callbacks()


def write(model, path, method, work):
    """Exports to stock operators, each kernel packed."""
    examples = work.standardized(work.images[:200])
    keras_sq.export(model, path, target="small", representative_data=examples)


PEER = harness.Peer(("keras_sq", "tensorflow", "keras"), make, write, callbacks)

if __name__ == "__main__":
    harness.start(PEER)
