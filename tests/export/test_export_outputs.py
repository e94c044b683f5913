"""What the report says of outputs: errors by entry, silence, NaN, where it begins."""

import json
import os
import re

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.export import ExportError
from keras_sq.export.conversion import convert, inputs, integer
from keras_sq.export.examples import Batch
from keras_sq.export.report import OutputError, TensorReport
from keras_sq.export.tflite import runtime
from keras_sq.export.verification import comparison as comparing
from keras_sq.export.verification import differences, output_notes, running


def data(*shape, count=48, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def export(model, tmp_path, target="float", x=None):
    return keras_sq.export(
        model, tmp_path / "m.tflite", target=target, representative_data=x
    )


# Entries of the last axis.


@pytest.mark.parametrize("at_once", [2**20, 7])
def test_figures_are_those_of_each_entry(at_once, monkeypatch):
    monkeypatch.setattr(differences, "AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(40, 5, 3)) * [1.0, 100.0, 1.0] + [0, 0, 1000]
    expected[..., 2] = 1000.0  # Constant.
    actual = expected + generator.normal(size=expected.shape) * [0.2, 1.0, 0.3]
    errors = differences.EntryErrors()
    for start in range(0, 40, 16):  # The last batch is smaller.
        errors.add(actual[start : start + 16], expected[start : start + 16])
    found = errors.result("y", 0.5, None)
    difference = np.sqrt(np.mean((actual - expected) ** 2, axis=(0, 1)))
    spread = np.std(expected, axis=(0, 1))
    assert (found.worst_entry, found.entries) == (0, 3)
    assert found.worst_error == pytest.approx(difference[0] / spread[0])
    assert found.largest == 1000.0
    span = np.ptp(expected[..., 0])
    assert found.narrow_entries == ()
    for step, narrow in ((span / 3.9, ((0, 0),)), (span / 4.1, ())):
        found = errors.result("y", 0.5, step)
        assert found.narrow_entries == narrow
    assert errors.result("y", 0.5, 1000.0).narrow_entries == ((0, 1),)


@pytest.mark.parametrize(
    ("shapes", "entries"),
    [([(4,), (3,)], 1), ([(2, 3), (2, 5)], None), ([(0, 2)], 2), ([(2, 0)], None)],
)
def test_axes_of_all_kinds_have_figures(shapes, entries):
    errors = differences.EntryErrors()
    for shape in shapes:
        errors.add(np.ones(shape, "float32"), np.ones(shape, "float32"))
    found = errors.result("y", 0.0, 0.1)
    assert (found.entries, found.worst_entry, found.worst_error) == (
        entries,
        None,
        None,
    )


def boxes_and_scores(separate=False):
    x = keras.Input((4,), name="x")
    hidden = kl.Dense(16, "relu")(x)
    boxes = kl.Rescaling(100.0)(kl.Dense(4)(hidden))
    scores = kl.Dense(3, "softmax")(hidden)
    outputs = [boxes, scores] if separate else kl.Concatenate()([boxes, scores])
    return keras.Model(x, outputs)


def test_entries_that_int8_steps_swallow_are_noted(tmp_path):
    model, x = boxes_and_scores(), data(4)
    report = export(model, tmp_path, "int8", x)
    (output,) = report.outputs
    expected = np.array(model(x))
    assert np.all(np.ptp(expected, axis=0)[4:] < output.scale)
    (note,) = report.notes
    assert note == (
        f"entries 4 to 6 of output_0 span less than one int8 step ({output.scale:.3g})"
        ": make them outputs of their own"
    )
    # The figures, from the file itself.
    runner = runtime.Runner((tmp_path / "m.tflite").read_bytes())
    (codes,) = runner({"x": runner.quantized("x", x)}).values()
    actual = (codes.astype("f8") - output.zero_point) * output.scale
    errors = np.sqrt(np.mean((actual - expected) ** 2, axis=0)) / expected.std(axis=0)
    (error,) = report.output_errors
    assert error.worst_entry == np.argmax(errors)
    assert error.worst_error == pytest.approx(errors.max(), rel=1e-3)
    assert error.narrow_entries == ((4, 6),)
    assert error.narrow_span == pytest.approx(np.ptp(expected, axis=0)[4:].max())
    assert f"of the worst entry, {error.worst_error:.1e} of its spread" in str(report)
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["output_errors"][0]["narrow_entries"] == [[4, 6]]
    separate = export(boxes_and_scores(separate=True), tmp_path, "int8", x)
    assert separate.notes == ()
    assert all(x.worst_error < 0.2 for x in separate.output_errors)


def test_values_far_from_zero_are_noted(tmp_path):
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2), kl.Rescaling(1.0, 1e4)])
    report = export(model, tmp_path, "int8", data(4))
    (note,) = (note for note in report.notes if "span" in note)
    assert note.startswith("all entries of output_0 span less than one int8 step (39")
    assert "a large constant" in note


def test_classes_that_no_example_shows_are_not_noted(tmp_path):
    model = keras.Sequential([keras.Input((4,)), kl.Dense(5, "softmax")])
    model.layers[0].bias.assign([0.0, 0.0, -8.0, 0.0, -8.0])
    report = export(model, tmp_path, "int8", data(4))
    assert report.output_errors[0].narrow_entries == ((2, 2), (4, 4))
    assert report.notes == ()


def test_float_files_have_figures_too(tmp_path):
    report = export(boxes_and_scores(), tmp_path)
    (error,) = report.output_errors
    assert error.entries == 7
    assert error.worst_error < 1e-4
    assert report.notes == ()


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (
            OutputError("y", 0.0, 1.0, 3, 1, 0.7),
            "entry 1 of y differs .* by 0.7 of its",
        ),
        (OutputError("y", 0.0, 1.0, 3, 1, 0.3), None),
        (OutputError("y", 0.0, 0.0, 3), "y is 0 on every example: is the network tra"),
        (OutputError("y", 0.0, 1e-8, 3), "y is 0 on every example, but for 1.0e-08"),
        (OutputError("y", 0.0), None),
        (
            OutputError("y", 0.0, 9.0, 3, narrow_entries=((1, 1),), narrow_span=0.3),
            r"entry 1 of y spans less than 4 int8 steps \(0.1\): make them outputs",
        ),
        (
            OutputError("y", 0.0, 9.0, 1, narrow_entries=((0, 0),), narrow_span=0.3),
            r"the values of y span less than 4 int8 steps",
        ),
        (
            OutputError("y", 0.0, 9.0, 9, nan_entries=((0, 0), (3, 4))),
            "entries 0, 3 to 4 of y are NaN on every example",
        ),
        (
            OutputError("y", 0.0, 9.0, 9, nan_entries=((2, 2),)),
            "entry 2 of y is NaN on every example",
        ),
    ],
)
def test_notes_name_entries(error, match):
    output = TensorReport("y", (None, 3), "int8", 0.1, 0)
    comparison = comparing.Comparison(0.0, 0.0, 4, 4, "LiteRT", (), (output,), (error,))
    notes = output_notes.notes(comparison, jumps=False)
    if match is None:
        assert notes == ()
    else:
        (note,) = notes
        assert re.match(match, note)


# Silence.


def silent(place):
    """Returns a model with a ReLU that never opens."""
    closed = keras.initializers.Constant(-100.0)
    x = keras.Input((4,), name="x")
    if place == "sum":
        # Of int8: its kernel would end the process at steps so different.
        far = kl.Dense(3, bias_initializer=keras.initializers.Constant(-1e6))(x)
        return keras.Model(x, kl.ReLU()(kl.Dense(3)(x) * 1e4 + far))
    first = kl.Dense(
        8, "relu", bias_initializer=closed if place == "inside" else "zeros"
    )
    last = kl.Dense(
        3, "relu", bias_initializer=closed if place == "output" else "zeros"
    )
    y = last(first(x))
    if place == "one of two":
        second = kl.Dense(2, "relu", bias_initializer=closed)(x)
        return keras.Model(x, [kl.Dense(2)(x), second])
    return keras.Model(x, y)


@pytest.mark.parametrize("target", ["float", "int8", "small"])
@pytest.mark.parametrize("place", ["output", "inside", "sum", "one of two"])
def test_silent_outputs_are_exported(place, target, tmp_path):
    model, x = silent(place), data(4)
    report = export(model, tmp_path, target, x)
    name = report.outputs[-1].name
    assert f"{name} is 0 on every example: is the network trained?" in report.notes
    assert report.mean_error < 0.05
    json.dumps(report.to_dict(), allow_nan=False)
    for delegates in (True, False):
        runner = runtime.Runner((tmp_path / "m.tflite").read_bytes(), delegates)
        outputs = runner({"x": runner.quantized("x", x[:1])})
        assert not np.any(runner.dequantized(name, outputs[name]))


def test_layer_that_hardly_opens_gets_steps_that_kernels_take():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8), kl.ReLU()])
    x = data(4)
    top = np.array(model(x)).max(axis=0)
    model.layers[0].bias.assign(1e-5 - top)
    signature, examples, _ = inputs.prepare(model, x)
    floats = convert.float_file(model, signature, integers=True)
    content = integer.int8_file(floats, examples)
    runner = runtime.Runner(content)  # With XNNPACK, which is particular.
    batch = Batch("representative", (signature.inputs[0].name,), [x[:1]])
    (found,) = running.file_outputs(runner, batch).values()
    assert runner.dequantized("output_0", found).max() < 0.1


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_rounding_of_what_cancels_is_no_difference(noise):
    # Keras's, or the file's: which of them is exactly 0 hangs on the processor.
    zeros, other = np.zeros((3, 2), "float32"), np.full((3, 2), 1e-8, "float32")
    for actual, expected in ((zeros, other), (other, zeros)):
        assert differences.relative_error(actual, expected) <= 1e-8 + 1e-12
        assert differences.agreeing({"y": actual}, {"y": expected}, 3) == [True] * 3
        errors = differences.Errors()
        errors.add(0.0, actual, expected)
        assert errors.silent and errors.mean <= 1.1e-8
    assert differences.relative_error(zeros + 1, zeros) == 1.0
    assert differences.relative_error(zeros, zeros + 1e-3) == pytest.approx(1.0)


def test_a_step_beside_silence_is_no_fault():
    errors = differences.Errors(differences.SILENT_STEPS * 0.1)
    errors.add(0.0, np.full(9, 0.1, "float32"), np.zeros(9, "float32"))
    assert errors.mean == pytest.approx(0.25)
    assert errors.mean < comparing.MAX_MEAN_ERROR
    errors = differences.Errors(differences.SILENT_STEPS * 0.1)
    errors.add(0.0, np.full(9, 1.0, "float32"), np.zeros(9, "float32"))
    assert errors.mean > comparing.MAX_MEAN_ERROR


# NaN.


def broken():
    x = keras.Input((4,), name="x")
    bn = kl.BatchNormalization(name="bn")
    y = kl.Dense(2)(kl.ReLU()(bn(kl.Dense(8)(x))))
    bn.moving_variance.assign(-np.ones(8))
    return keras.Model(x, {"fine": x * 2.0, "broken": y}, name="net")


@pytest.mark.parametrize("target", ["float", "fast", "small"])
def test_output_that_is_never_a_number_is_refused(target, tmp_path):
    match = "Output 'broken' of model 'net' is NaN on every input .* of layer 'bn'"
    with pytest.raises(ExportError, match=match):
        export(broken(), tmp_path, target)
    if target == "float":
        with pytest.raises(ExportError, match="that was tried.*before that. No file"):
            export(broken(), tmp_path, target, data(4))
    assert os.listdir(tmp_path) == []


def test_outputs_of_numbers_somewhere_are_exported(tmp_path):
    x = keras.Input((4,), name="x")
    far = keras.Model(x, keras.ops.sqrt(x - 100.0))
    with pytest.raises(ExportError, match="or pass `representative_data` on which"):
        export(far, tmp_path)
    report = export(far, tmp_path, x=data(4) + 200)
    assert report.notes == ()
    mask = np.array([0.0, -np.inf, 0.0, np.nan], "float32")
    report = export(keras.Model(x, x + mask), tmp_path, x=data(4))
    assert report.notes == ("entry 3 of output_0 is NaN on every example",)
    always = keras.Model(x, keras.ops.log(x * 0.0))  # Minus infinity: as Keras says.
    assert export(always, tmp_path, x=data(4)).largest_error == 0.0


# Where it begins.


@keras.saving.register_keras_serializable("test_export_outputs")
class Squash(kl.Layer):
    """Of capsule networks: the squared norms of short vectors are tiny."""

    def call(self, x):
        norm = keras.ops.sum(keras.ops.square(x), axis=-1, keepdims=True)
        return x * (norm / (1 + norm) / keras.ops.sqrt(norm + 1e-9))


def test_refusal_names_where_the_difference_begins(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((16,)),
            kl.Dense(64, kernel_initializer=keras.initializers.RandomNormal(0, 2e-4)),
            kl.Reshape((16, 4)),
            Squash(name="squash"),
            kl.Flatten(),
            kl.Dense(10),
        ]
    )
    match = (
        r"output 'output_0' differs by .* The difference begins at operation \w+ of "
        r"layer 'squash', .* closer to 0 than half a step of int8 .* activations\. No f"
    )
    with pytest.raises(ExportError, match=match):
        export(model, tmp_path, "int8", data(16))
    assert os.listdir(tmp_path) == []


def test_indices_of_int8_values_are_counted(tmp_path):
    x = keras.Input((8,))
    y = kl.Dense(99)(x)
    model = keras.Model(x, {"best": keras.ops.top_k(y, 3)[1], "scores": y})
    examples = data(8)
    report = export(model, tmp_path, "int8", examples)
    run = runtime.Runner((tmp_path / "m.tflite").read_bytes())
    (name,) = run.inputs
    found = [run({name: run.quantized(name, row[None])})["best"] for row in examples]
    expected = np.argsort(-np.asarray(model(examples)["scores"]), -1)[:, :3]
    fraction = np.mean(np.concatenate(found) == expected)
    assert 0.8 < fraction < 1
    start = f"{fraction:.1%} of the integers of best are those of Keras"
    assert any(note.startswith(start) for note in report.notes)
    assert report.mean_error < 0.1
