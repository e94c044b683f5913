"""Sensitivities are those of one layer alone, and choices fit and are the best."""

import itertools
import json

import keras
import numpy as np
import pytest
from backends import BACKEND

import keras_sq

NAMES = ["binary", "ternary", "uniform-4"]


def numbers(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def compile_model(model, **settings):
    settings = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        **settings,
    }
    model.compile(keras.optimizers.SGD(0.1), jit_compile=BACKEND == "jax", **settings)
    return model


def small_network():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.SeparableConv2D(5, 3, name="separable"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2DTranspose(4, 2, name="transpose"),
            keras.layers.Flatten(),
            keras.layers.Dense(7, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ],
        name="small",
    )


def small_model():
    return compile_model(small_network())


def small_data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 6, 6, 2)).astype("float32")
    return x, generator.integers(0, 3, 64)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    model = small_model()
    found = keras_sq.sensitivity(model, small_data(), candidates=NAMES)
    return model, found


def test_each_value_is_that_of_a_model_with_one_quantized_layer(small):
    model, found = small
    x, y = small_data()
    loss = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert found.baseline == pytest.approx(loss, rel=1e-6)
    layers = ("separable", "transpose", "hidden", "logits")
    assert found.layers == layers
    assert len(found.rows) == len(layers) * len(NAMES)
    for path in layers:
        others = [other for other in layers if other != path]
        alone = keras_sq.quantize_model(model, "ternary", skip=others, overrides={})
        value = compile_model(alone).evaluate(x, y, verbose=0, return_dict=True)
        row = found.row(path, "ternary")
        assert row.value == pytest.approx(value["loss"], rel=1e-5)
        assert row.harm == pytest.approx(value["loss"] - loss, abs=1e-5)
        table = keras_sq.summary(alone, print_fn=lambda text: None)
        kernels = [row for row in table.rows if row.error is not None]
        assert row.weights == sum(kernel.weights for kernel in kernels)
        assert row.packed_bits == round(sum(k.weights * k.bits for k in kernels))
        if len(kernels) == 1:
            assert row.error == pytest.approx(kernels[0].error, rel=1e-5)


def test_rows_are_sorted_and_can_be_had_in_other_forms(small):
    _, found = small
    harms = [row.harm for row in found.rows]
    assert harms == sorted(harms, reverse=True)
    records = found.to_records()
    assert {type(v) for record in records for v in record.values()} <= {str, int, float}
    assert json.loads(json.dumps(found.to_dict()))["layers"] == records
    lines = str(found).splitlines()
    assert lines[0].startswith("loss with one layer quantized; float: ")
    assert lines[1].split() == ["layer", "weights", *NAMES]
    assert lines[3].split()[0] == found.rows[0].path
    assert len({len(line) for line in lines[1:]}) == 1


def test_model_stays_as_it_is(small):
    model, _ = small
    before, function = numbers(model.variables), model.test_function
    keras_sq.sensitivity(model, small_data(), candidates=["lq-2"])
    for old, new in zip(before, numbers(model.variables), strict=True):
        np.testing.assert_array_equal(old, new)
    # Compiled once, for all layers and candidates, and before them.
    assert model.test_function is function is not None


def test_model_stays_as_it_is_after_an_error(small, monkeypatch):
    model, _ = small
    before, calls = numbers(model.variables), []
    evaluate = model.evaluate

    def failing(**arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(**arguments)

    monkeypatch.setitem(model.__dict__, "evaluate", failing)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT011 (it has no message)
        keras_sq.sensitivity(model, small_data(), candidates=NAMES)
    for old, new in zip(before, numbers(model.variables), strict=True):
        np.testing.assert_array_equal(old, new)


def test_metric_that_is_to_be_maximized_harms_by_falling(small):
    model, _ = small
    found = keras_sq.sensitivity(
        model, small_data(), candidates=["binary"], metric="accuracy"
    )
    assert found.mode == "max"
    for row in found.rows:
        assert row.harm == pytest.approx(found.baseline - row.value)
    choice = keras_sq.choose_within(found, 10**6)
    assert choice.predicted >= found.baseline


def test_data_may_be_a_data_set_or_weighted(small):
    model, found = small
    x, y = small_data()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            part = slice(16 * index, 16 * index + 16)
            return x[part], y[part]

    again = keras_sq.sensitivity(model, Batches(), candidates=["binary"])
    assert again.baseline == pytest.approx(found.baseline, rel=1e-5)
    weights = np.zeros(64, "float32")
    weights[:16] = 4.0
    first = keras_sq.sensitivity(model, (x, y, weights), candidates=["binary"])
    loss = model.evaluate(x[:16], y[:16], verbose=0, return_dict=True)["loss"]
    assert first.baseline == pytest.approx(loss, rel=1e-5)


def test_choice_is_the_best_of_all_assignments_and_its_bytes_are_the_summarys(small):
    model, found = small
    sizes, harms = {}, {}
    for path, name in itertools.product(found.layers, NAMES):
        row = found.row(path, name)
        sizes[path, name], harms[path, name] = row.packed_bits, row.harm
    for path in found.layers:
        sizes[path, "float"] = 32 * found.row(path, "binary").weights
        harms[path, "float"] = 0.0
    options = list(itertools.product([*NAMES, "float"], repeat=len(found.layers)))
    for budget in (700, 1000, 1500, 4000):
        best = min(
            sum(harms[pair] for pair in zip(found.layers, names, strict=True))
            for names in options
            if 32 * found.float_weights
            + sum(sizes[pair] for pair in zip(found.layers, names, strict=True))
            <= 8 * budget
        )
        choice = keras_sq.choose_within(found, budget)
        assert choice.gap == 0.0
        assert choice.predicted - choice.baseline == pytest.approx(best, abs=1e-9)
        assert choice.packed_bytes <= budget
        quantized = choice.quantize_model(model)
        table = keras_sq.summary(quantized, print_fn=lambda text: None)
        assert table.packed_bytes == choice.packed_bytes
        made = {
            outcome.path: outcome.quantizer for outcome in quantized.quantization_report
        }
        for path, name in choice.assignment.items():
            expected = None if name == "float" else repr(keras_sq.quantizers.get(name))
            assert made[path] == expected


def test_choice_goes_straight_into_quantize_model(small):
    model, found = small
    choice = keras_sq.choose_within(found, 1000)
    quantized = keras_sq.quantize_model(model, **choice.settings, granularity="element")
    assert keras_sq.summary(quantized, lambda text: None).packed_bytes <= 1000
    assert json.loads(json.dumps(choice.to_dict()))["assignment"] == choice.assignment
    lines = str(choice).splitlines()
    assert [line.split() for line in lines[:-1]] == [
        [path, name] for path, name in choice.assignment.items()
    ]
    assert lines[-1].startswith(f"{choice.packed_bytes:,} of 1,000 bytes; loss ")


def test_layers_of_the_same_name_get_their_own_quantizers():
    def block(name):
        layers = [keras.Input((6,)), keras.layers.Dense(6, name="dense")]
        return keras.Sequential(layers, name=name)

    layers = [keras.Input((6,)), block("a"), keras.layers.Dense(6, name="dense")]
    model = compile_model(keras.Sequential([*layers, block("b")]), loss="mse")
    data = np.ones((8, 6), "float32"), np.ones((8, 6), "float32")
    found = keras_sq.sensitivity(model, data, candidates=["binary", "uniform-4"])
    assert found.layers == ("a/dense", "dense", "b/dense")
    wanted = dict(zip(found.layers, ("float", "binary", "uniform-4"), strict=True))
    choice = keras_sq.choose_within(found, 10**6)
    choice = type(choice)(**{**vars(choice), "assignment": wanted})
    made = choice.quantize_model(model).quantization_report
    assert {outcome.path: outcome.quantizer for outcome in made} == {
        "a/dense": None,
        "dense": "BinaryQuantizer()",
        "b/dense": "UniformQuantizer(num_bits=4, scale='output_error')",
    }


def test_skipped_layers_stay_float_and_count_as_such(small):
    model, _ = small
    choice = keras_sq.choose_bits(
        model,
        small_data(),
        max_bytes=1500,
        candidates=["binary", keras_sq.quantizers.TernaryQuantizer()],
        skip=["@first", "logits"],
    )
    assert list(choice.assignment) == ["transpose", "hidden"]
    quantized = choice.quantize_model(model)
    table = keras_sq.summary(quantized, print_fn=lambda text: None)
    assert table.packed_bytes == choice.packed_bytes
    (row,) = [row for row in table.rows if row.path == "logits"]
    assert row.reason == "named by skip='logits'"


def test_impossible_budget_says_what_is_possible(small):
    model, found = small
    least = keras_sq.quantize_model(model, "binary", overrides={})
    least = keras_sq.summary(least, print_fn=lambda text: None).packed_bytes
    with pytest.raises(ValueError, match=rf"at least {least}, .*156 of them for"):
        keras_sq.choose_within(found, least - 1)
    smallest = keras_sq.choose_within(found, least)
    assert set(smallest.assignment.values()) == {"binary"}


def test_budget_of_the_float_network_leaves_nothing_to_quantize():
    model = small_model()
    found = keras_sq.sensitivity(model, small_data(), candidates=["binary"])
    rows = tuple(row._replace(harm=abs(row.harm) + 1) for row in found.rows)
    found = type(found)(**{**vars(found), "rows": rows})
    choice = keras_sq.choose_within(found, 10**6)
    assert set(choice.assignment.values()) == {"float"}
    with pytest.raises(ValueError, match=r"float network fits into 1,000,000 bytes"):
        choice.quantize_model(model)
    assert (
        "float"
        not in keras_sq.choose_within(
            found, 10**6, allow_float=False
        ).assignment.values()
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": None}, TypeError, r"`data` must be \(x, y\)"),
        ({"data": (np.ones((0, 6, 6, 2)), np.ones(0))}, ValueError, "must hold examp"),
        ({"data": np.ones((4, 6, 6, 2))}, TypeError, "a loss needs targets"),
        ({"data": iter([small_data()])}, TypeError, "evaluated many times"),
        ({"data": (1,)}, ValueError, "a tuple of 1"),
        ({"metric": "acuracy"}, ValueError, "one of 'accuracy', 'loss'"),
        ({"mode": "least"}, ValueError, "`mode` must be one of"),
        ({"candidates": "binary"}, TypeError, "must be a list of quantizers"),
        ({"candidates": []}, ValueError, "at least one quantizer"),
        ({"candidates": ["trinary"]}, ValueError, "Did you mean 'ternary'"),
        ({"skip": "hiden"}, ValueError, "matches no layer"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"max_bytes": 0}, ValueError, "`max_bytes` must be at least 1"),
        ({"max_bytes": 1e3}, TypeError, "`max_bytes` must be an integer"),
    ],
)
def test_impossible_requests_raise(small, change, error, message):
    arguments = {"data": small_data(), "max_bytes": 1000, "candidates": NAMES} | change
    with pytest.raises(error, match=message):
        keras_sq.choose_bits(small[0], arguments.pop("data"), **arguments)


def test_models_that_cannot_be_evaluated_raise():
    data = small_data()
    model = small_model()
    # Keras keeps the loss of an earlier `compile`, and `clone_model` copies it.
    without = compile_model(small_network(), loss=None)
    with pytest.raises(ValueError, match="'small' is quantized already"):
        quantized = compile_model(
            keras_sq.quantize_model(model, "binary", overrides={})
        )
        keras_sq.sensitivity(quantized, data)
    with pytest.raises(ValueError, match="'small' is compiled without a loss"):
        keras_sq.sensitivity(without, data)
    with pytest.raises(ValueError, match="'small' is not compiled"):
        keras_sq.sensitivity(small_network(), data)
    with pytest.raises(ValueError, match="is not built"):
        keras_sq.sensitivity(keras.Sequential([keras.layers.Dense(3)]), data)
    x, y = data
    with pytest.raises(ValueError, match=r"loss is nan on this data"):
        nothing = np.full(64, np.nan, "float32")
        keras_sq.sensitivity(small_model(), (x, y, nothing), candidates=["binary"])


@pytest.mark.tensorflow
def test_choice_beats_ternary_everywhere_on_a_trained_network():
    # The bytes of a ternary network, given out by need: what is seen on one half of
    # the test images holds on the other. Margins are several times the noise.
    data = keras_sq.datasets.load("digits", batch_size=64, seed=0)
    model = keras_sq.models.get("digits_cnn", data.input_shape, data.num_classes)
    compile_model(model)
    epochs = {"epochs": 8, "steps_per_epoch": data.steps_per_epoch}
    model.fit(data.train(0, 8), **epochs, shuffle=False, verbose=0)
    ternary = keras_sq.quantize_model(model, "ternary", overrides={})
    budget = keras_sq.summary(ternary, print_fn=lambda text: None).packed_bytes
    choice = keras_sq.choose_bits(model, data.validation, max_bytes=budget)

    def loss(quantized):
        compile_model(quantized)
        return quantized.evaluate(data.test, verbose=0, return_dict=True)["loss"]

    plain, chosen = loss(ternary), loss(choice.quantize_model(model))
    assert choice.packed_bytes <= budget
    assert len(set(choice.assignment.values())) > 1
    assert chosen < 0.9 * plain, (chosen, plain)
    # The layer that minds most is the second convolution, for any seed tried.
    assert choice.sensitivity.rows[0].path == "conv2"
