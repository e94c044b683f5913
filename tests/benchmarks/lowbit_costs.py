r"""Fits the times by which target "lowbit" chooses forms: `lowbit/costs.json`.

    python tests/benchmarks/lowbit_costs.py --processor="x86-64 with AVX2" --write

Times single operators in each form (CPU time, one thread, caches hot), fits a sum of
terms to them (least squares of relative errors, no factor below 0), prints measured and
fitted times, and with `--write` puts the factors into the table, beside those of other
processors. Takes about five minutes. Needs SciPy.
"""

import dataclasses
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_sq
from keras_sq.export import building, kinds, steps
from keras_sq.export.lowbit import choosing, costs
from keras_sq.export.lowbit.products import work_of
from keras_sq.export.lowbit.rewriting import rewritten
from keras_sq.export.tflite import choice
from keras_sq.export.tflite.flatbuffer import TFLiteFile

PROCESSOR = flags.DEFINE_string("processor", None, "What the times are of.")
WRITE = flags.DEFINE_bool("write", False, "Put the factors into the table.")

DENSE = [(256, 128), (512, 512), (1024, 1024), (2048, 1000), (4096, 1024)]
"""Inputs and outputs."""

CONVOLUTIONS = [
    (1, 7, 512, 512),
    (1, 14, 256, 256),
    (1, 28, 128, 128),
    (1, 56, 64, 64),
    (1, 48, 16, 96),
    (1, 24, 144, 24),
    (1, 12, 384, 64),
    (1, 3, 960, 320),
    (3, 32, 16, 16),
    (3, 16, 32, 32),
    (3, 8, 64, 64),
    (3, 56, 64, 64),
    (3, 28, 128, 128),
    (3, 14, 256, 256),
    (3, 7, 512, 512),
]
"""Kernel, height, channels and filters."""

DEPTHWISE = [(48, 96), (24, 144), (12, 384), (6, 576), (32, 16), (56, 128)]
"""Height and channels."""

SECONDS = 0.15
"""How long each file is timed."""


@dataclasses.dataclass
class Measurement:
    """The time of an operator in one form, in nanoseconds."""

    form: str
    work: object
    copied: int
    time: float


def networks():
    """Yields networks of one layer each, and what they take."""
    layers = keras.layers
    for inputs, outputs in DENSE:
        yield layers.Dense(outputs), (inputs,)
    for kernel, size, channels, filters in CONVOLUTIONS:
        yield layers.Conv2D(filters, kernel, padding="same"), (size, size, channels)
    for size, channels in DEPTHWISE:
        yield layers.DepthwiseConv2D(3, padding="same"), (size, size, channels)


def measured():
    """Yields the times of all operators in all forms."""
    random = np.random.default_rng(0)
    for layer, shape in networks():
        inputs = keras.Input(shape, batch_size=1)
        model = keras_sq.quantize_model(keras.Model(inputs, layer(inputs)), "ternary")
        data = random.normal(size=(16, *shape)).astype("float32")
        for activations, examples in (("float", None), ("int8", data)):
            kind = kinds.get("lowbit")
            request = steps.prepare(model, kind, examples, None, kind.types(None))
            yield from _of_request(request, activations)


def _of_request(request, activations):
    if activations == "float":
        _, content, weights = building.shared_floats(request)
        options = [choosing.float_option(TFLiteFile(content), weights[0], {}, False)]
    else:
        _, content, weights, _ = building.shared_integers(request)
        options = [choosing.integer_option(TFLiteFile(content), weights[0], {}, False)]
    (option,) = options
    file = TFLiteFile(content)
    work = work_of(file, option.plan.weight, {})
    depth = "depthwise " if work.kind == "depthwise" else ""
    others = [form for form in option.forms if form.direct is None]
    for kind, form in zip(("INT8", "packed"), others, strict=True):
        stored, _ = choice.store_plans(content, [form.plan])
        name = f"{depth}{kind}, {activations} activations"
        yield Measurement(name, work, 0, timed(stored.pack()))
    copied = sum(window.copied for window in option.windows)
    for direct in [form.direct for form in option.forms if form.direct is not None]:
        name = f"{direct.type_name}, {activations} activations"
        time = timed(rewritten(content, [direct]))
        yield Measurement(name, work, copied, time)


def timed(content):
    """Returns the median CPU time of a run, in nanoseconds."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    for _ in range(3):
        interpreter.invoke()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        start = time.process_time_ns()
        interpreter.invoke()
        times.append(time.process_time_ns() - start)
    return float(np.median(times))


def fitted(measurements, activations):
    """Returns form -> term -> nanoseconds, for one type of activations."""
    from scipy.optimize import nnls

    own = [x for x in measurements if x.form.endswith(f"{activations} activations")]
    forms = dict.fromkeys(entry.form for entry in own)
    rows = f"rows, {activations} activations"
    columns = [(form, term) for form in forms for term in costs.TERMS]
    columns += [(rows, "calls"), (rows, "inputs")]
    matrix = np.zeros((len(own), len(columns)))
    for place, entry in enumerate(own):
        for term in costs.TERMS:
            matrix[place, columns.index((entry.form, term))] = getattr(entry.work, term)
        if entry.copied:
            matrix[place, columns.index((rows, "calls"))] = entry.work.calls
            matrix[place, columns.index((rows, "inputs"))] = entry.copied
    times = np.array([entry.time for entry in own])
    factors, _ = nnls(matrix / times[:, np.newaxis], np.ones(len(own)))
    for entry, fit in zip(own, matrix @ factors, strict=True):
        work = entry.work
        print(
            f"{entry.form:34} {work.multiplications:>12,} {entry.time / 1000:9.1f} us "
            f"fitted {fit / 1000:9.1f}"
        )
    result = {}
    for (form, term), factor in zip(columns, factors, strict=True):
        result.setdefault(form, {})[term] = float(f"{factor:.4g}")
    return result


def main(_):
    keras.utils.set_random_seed(0)
    measurements = list(measured())
    table = {}
    for activations in ("float", "int8"):
        table |= fitted(measurements, activations)
    print(json.dumps(table, indent=1))
    if WRITE.value:
        content = json.loads(costs.PATH.read_text("utf-8"))
        content["processors"][PROCESSOR.value] = table
        costs.PATH.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    flags.mark_flag_as_required("processor")
    app.run(main)
