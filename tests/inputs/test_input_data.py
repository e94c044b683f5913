"""Data of a model's inputs, in every form that people have it in."""

import collections
import itertools

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.export.conversion import inputs
from keras_sq.export.tflite import runtime
from keras_sq.inputs import input_data, model_inputs

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.data on its own backend"
)

X = np.arange(60, dtype="float32").reshape(20, 3)
Y = np.arange(20)
A = np.arange(40, dtype="float32").reshape(20, 2)


def one():
    return keras.Sequential([keras.Input((3,)), kl.Dense(2)])


def pair(kind=list):
    """Returns a model of two inputs whose names are not in alphabetical order."""
    speed, angle = keras.Input((3,), name="speed"), keras.Input((2,), name="angle")
    structure = {
        list: [speed, angle],
        dict: {"speed": speed, "angle": angle},
        "ordered": collections.OrderedDict([("speed", speed), ("angle", angle)]),
        "nested": {"speeds": [speed], "angle": angle},
        "tuples": (speed, (angle,)),
    }[kind]
    return keras.Model(structure, kl.Dense(1)(speed) + kl.Dense(1)(angle))


class Batches(keras.utils.PyDataset):
    """`(x, y)` in batches of 6, the last one smaller."""

    def __init__(self, x, **kwargs):
        super().__init__(**kwargs)
        self.x = x

    @property
    def num_batches(self):
        return 4

    def __getitem__(self, index):
        part = slice(6 * index, 6 * index + 6)
        return keras.tree.map_structure(lambda x: x[part], self.x), Y[part]


class Examples:
    """A sequence of single examples, as of PyTorch."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return X[index], Y[index]


def read(model, data):
    _, examples, _ = inputs.prepare(model, data)
    return examples.arrays


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


def lite_generator():
    for x in X:
        yield [x[None]]


def named_generator():
    for x in X:
        yield {"inputs": x[None]}


ONE = {
    "array": X,
    "tensor": tf.constant(X),
    "float64": X.astype("float64"),
    "integers": X.astype("int64"),
    "nested lists": X.tolist(),
    "list of one": [X],
    "tuple of one": (X,),
    "list of batches": [X[:7], X[7:]],
    "list of examples": list(X),
    "list of pairs": list(zip(X, Y, strict=True)),
    "list of lists": [[x] for x in X],
    "dict": {"image": X},
    "dict with more": {"image": X, "label": Y},
    "data set": dataset(X).batch(7),
    "data set of pairs": dataset(X, Y).batch(7),
    "data set of triples": dataset(X, Y, Y / 20).batch(7),
    "data set of dicts": dataset({"image": X, "label": Y}).batch(7),
    "data set of dicts and labels": dataset({"image": X}, Y).batch(7),
    "unbatched data set": dataset(X),
    "unbatched pairs": dataset(X, Y),
    "pairs of the same shape": dataset(X, X + 100).batch(7),
    "unbatched pairs of the same shape": dataset(X, X + 100),
    "PyDataset": Batches(X),
    "sequence": Examples(),
    "generator function": lite_generator,
    "generator": lite_generator(),
    "converter's": tf.lite.RepresentativeDataset(lite_generator),
    "function of a data set": lambda: dataset(X).batch(4),
    "numpy iterator": dataset(X, Y).batch(4).as_numpy_iterator(),
    "generator of lists of numbers": (x.tolist() for x in X),
    "generator of batches of numbers": (X[i : i + 2].tolist() for i in range(0, 20, 2)),
    "iterator of arrays": iter(X),
    "missing batch axis of labels": ((x, 1) for x in X),
}


@pytest.mark.parametrize("kind", ONE)
def test_every_kind_gives_the_same_examples(kind):
    model = keras.Sequential([keras.Input((3,), name="image"), kl.Dense(2)])
    (found,) = read(model, ONE[kind])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


def pairs_of_arrays():
    for x, a in zip(X, A, strict=True):
        yield [x[None], a[None]]


def pairs_by_name():
    for x, a in zip(X, A, strict=True):
        yield {"angle": a[None], "speed": x[None]}


TWO = {
    "dict": {"angle": A, "speed": X},
    "dict with lists": {"angle": list(A), "speed": X.tolist()},
    "data set of dicts": dataset({"angle": A, "speed": X}).batch(7),
    "unbatched dicts": dataset({"angle": A, "speed": X}),
    "dicts and labels": dataset({"angle": A, "speed": X}, Y).batch(7),
    "PyDataset": Batches({"angle": A, "speed": X}),
    "generator function": pairs_by_name,
    "list of dicts": list(pairs_by_name()),
    "list of unbatched dicts": [
        {"speed": x, "angle": a} for x, a in zip(X, A, strict=True)
    ],
}
TWO_IN_ORDER = {
    "list": [X, A],
    "tuple": (X, A),
    "tensors": (tf.constant(X), A),
    "data set": dataset((X, A), Y).batch(7),
    "data set of pairs of inputs": dataset(X, A).batch(7),
    "data set of triples": dataset((X, A), Y, Y).batch(7),
    "unbatched": dataset((X, A), Y),
    "PyDataset": Batches((X, A)),
    "generator function": pairs_of_arrays,
    "list of pairs": [(x, a) for x, a in zip(X, A, strict=True)],
    "list of batches": [[X[:5], A[:5]], [X[5:], A[5:]]],
}


@pytest.mark.parametrize("structure", [list, dict, "ordered"])
@pytest.mark.parametrize("kind", TWO)
def test_inputs_by_name_find_their_place(kind, structure):
    model = pair(structure)
    signature = inputs.input_signature(model)
    data = TWO[kind]
    found = dict(
        zip([x.name for x in signature.inputs], read(model, data), strict=True)
    )
    np.testing.assert_array_equal(found["speed"], X)
    np.testing.assert_array_equal(found["angle"], A)
    expected = A @ weight(model, 2) + X @ weight(model, 3)
    packed = signature.pack([found[entry.name] for entry in signature.inputs])
    np.testing.assert_allclose(model(packed), expected, rtol=1e-5)


def weight(model, size):
    (kernel,) = (w for w in model.weights if w.shape == (size, 1))
    return keras.ops.convert_to_numpy(kernel)


@pytest.mark.parametrize("kind", TWO_IN_ORDER)
def test_inputs_in_order_find_their_place(kind):
    for structure in (list, "tuples"):
        found = read(pair(structure), TWO_IN_ORDER[kind])
        np.testing.assert_array_equal(found[0], X)
        np.testing.assert_array_equal(found[1], A)
        if not isinstance(TWO_IN_ORDER[kind], list | tuple):
            return  # Some can be read once only.


@pytest.mark.parametrize("structure", [dict, "ordered", "nested"])
@pytest.mark.parametrize(
    "data", [[X, A], (A, X), dataset(X, A).batch(7), pairs_of_arrays], ids=type
)
def test_no_order_stands_for_names(structure, data):
    message = r"must be a dict with the keys .*(in element 0)?: the model takes its inp"
    with pytest.raises(ValueError, match=message):
        read(pair(structure), data)


def test_names_of_an_ordered_dict_are_those_of_its_outputs(tmp_path):
    x = keras.Input((3,), name="x")
    outputs = collections.OrderedDict([("second", x * 2.0), ("first", x + 1.0)])
    report = keras_sq.export(keras.Model(x, outputs), tmp_path / "m.tflite")
    found = runtime.Runner((tmp_path / "m.tflite").read_bytes())({"x": X[:1]})
    np.testing.assert_allclose(found["first"], X[:1] + 1)
    np.testing.assert_allclose(found["second"], X[:1] * 2)
    assert {entry.name for entry in report.outputs} == {"first", "second"}


def test_nested_inputs_take_their_structure_or_the_names_in_the_file():
    model = pair("nested")
    for data in (
        {"speeds": [X], "angle": A},
        {"speeds": (X,), "angle": A},
        {"speeds": X, "angle": A},  # The names in the file.
    ):
        angle, speed = read(model, data)
        np.testing.assert_array_equal(speed, X)
        np.testing.assert_array_equal(angle, A)


def test_names_that_are_no_identifiers_are_taken_as_they_are():
    first, second = keras.Input((3,), name="my-speed"), keras.Input((2,), name="1st")
    model = keras.Model({"my-speed": first, "1st": second}, kl.Dense(1)(first))
    found = read(model, {"my-speed": X, "1st": A})
    names = [entry.name for entry in inputs.input_signature(model).inputs]
    np.testing.assert_array_equal(found[names.index("my_speed")], X)


@pytest.mark.parametrize(
    ("shape", "array"),
    [
        ((1,), Y),  # Columns of a table.
        ((1,), Y[:, None]),
        ((3, 1), X),  # Grey pictures.
        ((3,), X[..., None]),
    ],
)
def test_last_axes_of_size_one_are_taken_as_keras_takes_them(shape, array):
    model = keras.Sequential([keras.Input(shape), kl.Rescaling(2.0)])
    expected = keras.ops.convert_to_numpy(model(array.astype("float32"))) / 2.0
    for data in (array, dataset(array).batch(7), dataset(array, Y).batch(7)):
        np.testing.assert_array_equal(read(model, data)[0], expected)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(1)

    def call(self, inputs):
        if isinstance(inputs, dict):
            inputs = [inputs["speed"], inputs["angle"]]
        return self.dense(keras.ops.concatenate(list(inputs), axis=-1))


def test_subclassed_models_are_read_by_what_they_were_called_on():
    by_name, in_order = Subclassed(), Subclassed()
    by_name({"speed": X, "angle": A})
    in_order([X, A])
    np.testing.assert_array_equal(read(by_name, TWO["dict"])[0], A)
    np.testing.assert_array_equal(read(in_order, TWO_IN_ORDER["tuple"])[0], X)
    with pytest.raises(ValueError, match="must be a dict with the keys 'angle', 'spe"):
        read(by_name, [A, X])


def test_subclassed_models_take_their_dtypes_from_what_is_yielded():
    class Tokens(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = kl.Embedding(60, 2)

        def call(self, inputs):
            return self.table(inputs)

    model = Tokens()
    model(X.astype("int32"))
    signature, examples, _ = inputs.prepare(model, dataset(X.astype("int64")).batch(5))
    assert signature.inputs[0].dtype == "int32"
    assert examples.arrays[0].dtype == np.int32


# How many.


@pytest.mark.parametrize("batch", [None, 1, 100])
def test_endless_data_ends(batch):
    def forever():
        for number in itertools.count():
            yield np.full((3,) if batch is None else (batch, 3), number)

    signature, examples, notes = inputs.prepare(one(), forever)
    assert len(examples.arrays[0]) == inputs.MAX_EXAMPLES == 512
    np.testing.assert_array_equal(
        examples.arrays[0][:, 0], np.repeat(np.arange(512), batch or 1)[:512]
    )
    assert notes == ("used the first 512 representative examples; there are more",)


def test_all_of_what_ends_is_used_without_a_note():
    data = np.zeros((512, 3))
    for whole in (data, dataset(data).batch(32), dataset(data)):
        _, examples, notes = inputs.prepare(one(), whole)
        assert (len(examples.arrays[0]), notes) == (512, ())


def test_large_arrays_are_thinned_out():
    data = np.arange(3000.0).reshape(1000, 3)
    _, examples, notes = inputs.prepare(one(), data)
    np.testing.assert_array_equal(examples.arrays[0][[0, -1]], data[[0, -1]])
    assert np.all(np.diff(examples.arrays[0][:, 0]) > 0)
    assert notes == ("used 512 of 1,000 representative examples, evenly spaced",)


def test_batches_without_examples_have_an_end():
    empty = (np.zeros((0, 3)) for _ in itertools.count())
    with pytest.raises(ValueError, match=r"at least one, for every input"):
        read(one(), empty)


# What is refused.

BAD = {
    "number": (5, TypeError, "must be an array, a dict, .* of type int"),
    "text": ("images", TypeError, "must be an array, .* of type str"),
    "function of a model": (one, TypeError, "of type Sequential"),
    "function of an array": (lambda: X, TypeError, "of type ndarray"),
    "needs arguments": (lambda x: x, TypeError, "of type function"),
    "ragged": (tf.ragged.constant([[1.0], [2.0, 3.0]]), TypeError, "Make it dense"),
    "sparse": (tf.sparse.from_dense(X), TypeError, "Make it dense"),
    "strings": (np.full((2, 3), "a"), TypeError, "must hold numbers for input"),
    "string tensors": (tf.constant([["a", "b", "c"]]), TypeError, "must hold numbers"),
    "uneven lists": (
        {"image": [[1.0, 2.0], [3.0]]},
        ValueError,
        "must hold examples of one shape for input 'image'",
    ),
    "shape in a batch": (
        [X, A],
        ValueError,
        r"shape \('examples', 3\) for input 'image' in element 1. Rec.*\(20, 2\)",
    ),
    "shape of a generator": (
        lambda: iter([A]),
        ValueError,
        r"for input 'image' in element 0. Received: shape=\(20, 2\)",
    ),
    "x and y": ((X, Y), ValueError, r"2 of them. A tuple may be \(x, y\): pass x alon"),
    "autoencoder": ((X, X), ValueError, r"A tuple may be \(x, y\): pass x alone"),
    "other keys": ({"picture": X}, ValueError, r"\('image'\). .*keys \['picture'\]"),
    "yielded keys": (
        dataset({"picture": X}),
        ValueError,
        r"\('image'\) in element 0. Received: the keys \['picture'\]",
    ),
    "yielded ragged": (
        lambda: iter([{"image": tf.ragged.constant([[1.0], [2.0, 3.0]])}]),
        ValueError,
        r"in element 0. Received: {'image': RaggedTensor}",
    ),
    "nothing": ([], ValueError, "at least one"),
    "empty data set": (dataset(X).take(0), ValueError, "at least one"),
    "NaN in a batch": (dataset(X * np.nan).batch(4), ValueError, "must be finite"),
    "too large": (X.astype("float64") * 1e300, ValueError, "must be finite"),
    "objects": ([object()], ValueError, "must hold one array for each"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_an_error(case):
    data, error, match = BAD[case]
    model = keras.Sequential([keras.Input((3,), name="image"), kl.Dense(2)])
    with pytest.raises(error, match=f"Argument `representative_data` .*{match}"):
        read(model, data)


def test_sizes_that_differ_from_batch_to_batch_are_an_error():
    model = keras.Sequential([keras.Input((None, 2)), kl.LSTM(2)])
    batches = [np.zeros((4, 7, 2)), np.zeros((4, 9, 2))]
    with pytest.raises(ValueError, match=r"pad or crop them. .*\(7, 2\), \(9, 2\)"):
        read(model, batches)


def test_integers_that_do_not_fit_are_an_error():
    model = keras.Sequential([keras.Input((3,), dtype="uint8"), kl.Rescaling(1.0)])
    with pytest.raises(ValueError, match=r"must fit into uint8 .* from 0 to 590"):
        read(model, (X * 10).astype("int64"))


def test_lists_that_may_be_inputs_or_examples_are_an_error():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], a + b)
    rows = np.arange(4.0).reshape(2, 2)
    with pytest.raises(ValueError, match="can be understood in two ways"):
        read(model, [[rows[0], rows[1]], [rows[1], rows[0]]])
    found = read(model, [list(rows), rows])  # The second is no list of examples.
    np.testing.assert_array_equal(found[0], rows)
    found = read(model, [list(rows)] * 3)  # Three are no two inputs.
    np.testing.assert_array_equal(found[1], [rows[1]] * 3)


def test_lists_that_may_be_targets_or_examples_are_an_error():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(1)])
    with pytest.raises(ValueError, match="may be x and y, or so many examples"):
        read(model, [[X[0], X[1]], [X[2], X[3]]])
    # A tuple is (x, y), as in `fit`.
    np.testing.assert_array_equal(read(model, [(X[0], X[1])])[0], X[:1])


@pytest.mark.parametrize("names", [("a-b", "a_b"), ("1", "input_1"), ("a b", "a-b")])
def test_a_name_that_is_another_input_s_in_the_file_stays_its_own(names):
    first, second = (keras.Input((3,), name=name) for name in names)
    model = keras.Model([first, second], kl.Dense(1)(first) + kl.Dense(1)(second))
    for data in (
        dict(zip(names, (X, 10 * X), strict=True)),
        dict(zip(names[::-1], (10 * X, X), strict=True)),
    ):
        one, other = read(model, data)
        np.testing.assert_array_equal(one, X)
        np.testing.assert_array_equal(other, 10 * X)
    files = [entry.name for entry in inputs.input_signature(model).inputs]
    one, other = read(model, dict(zip(files, (X, 10 * X), strict=True)))
    np.testing.assert_array_equal(one, X)
    np.testing.assert_array_equal(other, 10 * X)


def test_different_numbers_of_examples_name_the_element():
    data = [[X[:2], A[:2]], [X[:2], A[:3]], [X, A]]
    with pytest.raises(ValueError, match=r"for every input in element 1. .*\[2, 3\]"):
        read(pair(), data)


# Batches.


def test_single_examples_are_put_into_batches():
    signature = model_inputs.input_signature(one())
    for data, sizes in (
        (X, [8, 8, 4]),
        (dataset(X), [8, 8, 4]),
        (dataset(X).batch(7), [7, 7, 6]),
        ([X[0], X[1:5], X[5], X[6]], [1, 4, 2]),
    ):
        batches = list(input_data.read(signature, data, "data").batches(8))
        assert [len(batch[0]) for batch in batches] == sizes
        joined = np.concatenate([np.asarray(batch[0]) for batch in batches])
        np.testing.assert_array_equal(joined, X[: len(joined)])


def test_generator_gives_the_ranges_of_its_arrays(tmp_path):
    model = pair(dict)
    data = {"speed": 10 * X, "angle": A}

    def generator():
        for start in range(0, 20, 5):
            yield {key: x[start : start + 5] for key, x in data.items()}

    files, reports = [], []
    for given in (data, generator):
        path = tmp_path / "m.tflite"
        reports.append(
            keras_sq.export(model, path, target="int8", representative_data=given)
        )
        files.append(path.read_bytes())
    assert files[0] == files[1]
    scales = {entry.name: entry.scale for entry in reports[0].inputs}
    assert scales["speed"] == pytest.approx(10 * X.max() / 255, rel=1e-3)
    assert scales["angle"] == pytest.approx(A.max() / 255, rel=1e-3)


def test_export_leaves_nothing_behind_if_a_generator_fails(tmp_path):
    def broken():
        yield [X[:1]]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        keras_sq.export(one(), tmp_path / "m.tflite", representative_data=broken)
    assert list(tmp_path.iterdir()) == []
