"""This package: its defaults; all layers alike, directly and with SQ."""

import harness

import keras_sq


def preset(method):
    """Returns the method: `"ternary-default"`, `"ternary-sq"`, `"ternary"`, ..."""
    quantizer, _, way = method.partition("-")
    if not way:
        return keras_sq.presets.direct(quantizer, skip=())
    # `None`: four bits for the smallest layers, as quantize_model has it.
    settings = {"skip": (), "overrides": None if way == "default" else {}}
    schedule = keras_sq.callbacks.StochasticQuantization().schedule
    return keras_sq.presets.stochastic(quantizer, schedule, **settings)


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
