"""Saves small models of every kind, for later versions to load.

    ~/.cache/keras_sq_versions/lowest/bin/python tests/checks/saved_models.py

Writes `tests/saved/<version>/`: for each model a `.keras` file and, beside it in an
`.npz`, an input, the outputs, masks, ratios and settings. Run it once for each
release, after the version in `keras_sq/core/version.py` was raised; the files of a
released version are never written again. `--again` replaces those of the present
version, which is right only as long as it is not released. Older versions of Keras do
not read what newer ones write, so this runs with the lowest that is supported: in the
environment that `supported_versions.py --environments=...` leaves.

test_saved_models.py loads the files of all versions. A new layer, quantizer or setting
gets a place in one of the models here; the test says so if it has none.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import supported_versions
from keras import layers as kl

import keras_sq
from keras_sq import layers as sq
from keras_sq import quantizers
from keras_sq.core.version import __version__
from keras_sq.layers import quantized_layers

FOLDER = pathlib.Path(__file__).parents[1] / "saved"

HYBRID = {"inference": "hybrid"}
"""Outputs then depend on the masks."""


# The models.


def dense():
    """Every quantizer, each with other settings."""
    choices = [
        ("binary", {}),
        ("ternary", {"granularity": "element", "probability": "softmax"}),
        (
            quantizers.TernaryQuantizer(threshold="filter"),
            {"selection": "deterministic", "draw": "released"},
        ),
        ("uniform-3", {"selection": "fixed", "probability": "sigmoid"}),
        (
            "sign",
            {
                "granularity": "element",
                "probability": "constant",
                "selection": keras_sq.SoftRefresh(0.25),
                "quantized_gradient": "blocked",
                "full_precision": "clip",
            },
        ),
        ("lq-1", {"quantized_gradient": "clipped_straight_through"}),
        ("lq-2", {"input_quantizer": "lq-2", "mask_seed": 7}),
        ("lq-3", {"input_quantizer": "uniform-2"}),
        ("binary", {"input_quantizer": "binary", "input_granularity": "element"}),
    ]
    x = inputs = keras.Input((6,))
    for number, (quantizer, settings) in enumerate(choices):
        settings = {**HYBRID, "mask_seed": number, **settings}
        x = sq.SQDense(6, activation="tanh", kernel_quantizer=quantizer, **settings)(x)
    return keras.Model(inputs, kl.Dense(2)(x), name="dense")


def convolutions():
    """Convolutions over images."""
    x = inputs = keras.Input((8, 8, 2))
    x = sq.SQConv2D(4, 3, kernel_quantizer="binary", mask_seed=1, **HYBRID)(x)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    x = sq.LearnedActivationQuantizer(2)(x)
    x = sq.SQDepthwiseConv2D(3, depth_multiplier=2, mask_seed=2, **HYBRID)(x)
    x = sq.UniformActivationQuantizer(3)(x)
    x = sq.SQSeparableConv2D(4, 2, kernel_quantizer="lq-2", mask_seed=3, **HYBRID)(x)
    x = sq.BinaryActivation()(x)
    x = sq.SQConv2DTranspose(2, 2, kernel_quantizer="uniform-4", mask_seed=4)(x)
    return keras.Model(inputs, x, name="convolutions")


def other_ranks():
    """Convolutions over sequences and volumes."""
    a = keras.Input((9, 2))
    x = sq.SQConv1D(3, 3, mask_seed=1, **HYBRID)(a)
    x = sq.SQDepthwiseConv1D(2, mask_seed=2, **HYBRID)(x)
    x = sq.SQSeparableConv1D(3, 2, mask_seed=3, **HYBRID)(x)
    x = sq.SQConv1DTranspose(2, 2, mask_seed=4, **HYBRID)(x)
    x = kl.Reshape((3, 3, 1, 2))(kl.Cropping1D((0, 0))(sq.SQConv1D(3, 1)(x)[:, :6, :]))
    x = sq.SQConv3D(2, (2, 2, 1), mask_seed=5, **HYBRID)(x)
    x = sq.SQConv3DTranspose(2, (2, 2, 1), mask_seed=6, **HYBRID)(x)
    return keras.Model(a, x, name="other_ranks")


def recurrent():
    """Recurrent layers and cells, bare and in wrappers."""
    x = inputs = keras.Input((4, 3))
    x = sq.SQLSTM(3, return_sequences=True, kernel_quantizer="binary", mask_seed=1)(x)
    x = sq.SQGRU(3, return_sequences=True, mask_seed=2, **HYBRID)(x)
    x = sq.SQSimpleRNN(3, return_sequences=True, mask_seed=3, **HYBRID)(x)
    cells = [sq.SQLSTMCell(2), sq.SQGRUCell(2), sq.SQSimpleRNNCell(2)]
    x = sq.SQRNN(cells, return_sequences=True)(x)
    return keras.Model(inputs, x, name="recurrent")


def attention():
    """Embedding, attention and what else is in a transformer."""
    inputs = keras.Input((5,), dtype="int32")
    x = sq.SQEmbedding(7, 4, kernel_quantizer="uniform-2", mask_seed=1, **HYBRID)(
        inputs
    )
    x = sq.SQMultiHeadAttention(2, 3, kernel_quantizer="lq-2", mask_seed=2, **HYBRID)(
        x, x
    )
    x = sq.SQEinsumDense("abc,cd->abd", (None, 3), mask_seed=3, **HYBRID)(x)
    return keras.Model(inputs, x, name="attention")


def wrapped():
    """What `quantize_model` makes of nested models and wrappers."""
    inner = keras.Sequential(
        [keras.Input((4,)), kl.Dense(3), kl.Dense(4)], name="inner"
    )
    shared = kl.Dense(4, name="shared")
    x = inputs = keras.Input((3, 4))
    x = kl.TimeDistributed(inner)(x)
    x = kl.Bidirectional(kl.GRU(2, return_sequences=True))(x)
    x = shared(shared(x))
    x = kl.Dense(2, name="logits")(x)
    model = keras.Model(inputs, x, name="wrapped")
    return keras_sq.quantize_model(
        model, "ternary", skip=["logits"], inference="hybrid", seed=3, overrides={}
    )


def half():
    """A model in mixed precision."""
    x = inputs = keras.Input((6,))
    x = sq.SQDense(5, dtype="mixed_float16", mask_seed=1, **HYBRID)(x)
    x = sq.SQDense(4, dtype="mixed_bfloat16", kernel_quantizer="lq-2", mask_seed=2)(x)
    return keras.Model(inputs, kl.Dense(2)(x), name="half")


def in_training():
    """A model that was compiled, and whose training was stopped half way."""
    x = inputs = keras.Input((6,))
    x = kl.Dense(8, activation="relu", name="hidden")(x)
    model = keras.Model(inputs, kl.Dense(2, name="logits")(x), name="in_training")
    model = keras_sq.quantize_model(
        model, "lq-2", input_quantizer="lq-2", skip=(), seed=5
    )
    schedule = keras_sq.schedules.exponential(lengths=[3] * 3, unit="steps")
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.01])
    rate = keras_sq.learning_rates.StagewiseLearningRate(decay, schedule)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype("float32"), rng.integers(0, 2, 20)
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True)
    )
    callbacks = [keras_sq.callbacks.StochasticQuantization(schedule), stop]
    settings = {"shuffle": False, "verbose": 0, "callbacks": callbacks}
    model.fit(x, y, batch_size=4, epochs=3, **settings)
    return model


def video():
    """Convolutional recurrent layers of one, two and three dimensions."""
    x = inputs = keras.Input((2, 4, 4, 2))
    x = sq.SQConvLSTM2D(
        2, 2, return_sequences=True, kernel_quantizer="binary", mask_seed=1, **HYBRID
    )(x)
    x = kl.Reshape((2, 9, 2))(x)
    x = sq.SQConvLSTM1D(2, 2, return_sequences=True, mask_seed=2, **HYBRID)(x)
    x = kl.Reshape((2, 2, 2, 2, 2))(x)
    x = sq.SQConvLSTM3D(2, (1, 2, 2), mask_seed=3, **HYBRID)(x)
    return keras.Model(inputs, x, name="video")


def tokens():
    """Embeddings that give logits too: tied, and with a projection of their own."""
    inputs = keras.Input((5,), dtype="int32")
    tied = sq.SQReversibleEmbedding(7, 4, mask_seed=1, **HYBRID)
    untied = sq.SQReversibleEmbedding(
        7, 4, tie_weights=False, kernel_quantizer="uniform-3", mask_seed=2, **HYBRID
    )
    x = tied(tied(inputs), reverse=True)
    y = untied(untied(inputs), reverse=True)
    return keras.Model(inputs, kl.Concatenate()([x, y]), name="tokens")


MODELS = (
    *(dense, convolutions, other_ranks, recurrent, attention, wrapped, half),
    *(in_training, video, tokens),
)


# What is compared.


def example(model):
    """Returns an input of two examples."""
    rng = np.random.default_rng(0)
    shape = (2, *model.inputs[0].shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 7, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def described(settings):
    """Returns settings as JSON holds them, without the places of our classes."""

    def plain(value):
        if isinstance(value, dict) and "class_name" in value:
            kept = {"class_name": value["class_name"], "config": value["config"]}
            return {key: plain(entry) for key, entry in kept.items()}
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return value

    return json.loads(json.dumps(plain(settings.get_config())))


def expectations(model, x):
    """Returns what a loaded model is compared with.

    Args:
        model: The model.
        x: An input.

    Returns:
        Arrays by name: `output`, and for each quantized layer, by its position,
        its masks, ratio, latent kernels and quantized kernels; `settings`, JSON of
        one dict a layer.
    """
    found = {"output": np.asarray(model(x), "float32")}
    settings = []
    for number, (_, layer) in enumerate(quantized_layers(model)):
        found[f"{number} ratio"] = np.asarray(layer.ratio)
        for name in layer.mask_names:
            found[f"{number} mask of {name}"] = np.asarray(layer.mask(name))
        for name in layer.quantized_weights:
            found[f"{number} latent {name}"] = np.asarray(layer.latent(name))
            found[f"{number} quantized {name}"] = np.asarray(
                layer.quantized_kernel(name)
            )
        chosen = {
            "class": type(layer).__name__,
            **described(layer.quantization_settings),
        }
        settings.append(chosen)
    found["settings"] = np.array(json.dumps(settings))
    if model.compiled:
        found["iterations"] = np.asarray(model.optimizer.iterations)
        found["learning rate"] = np.asarray(model.optimizer.learning_rate)
    return found


def write(folder):
    """Makes the models, draws masks of half of the filters, and saves them."""
    for number, make in enumerate(MODELS):
        keras.utils.set_random_seed(number)
        model = make()
        if not model.compiled:
            keras_sq.set_ratio(model, 0.5)
        path = folder / f"{make.__name__}.keras"
        model.save(path)
        pack(path)
        x = example(model)
        np.savez_compressed(path.with_suffix(".npz"), x=x, **expectations(model, x))


def pack(path):
    """Compresses a `.keras` file, which then takes a fifth; Keras reads both."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(made.getvalue())


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="Replace what is there.")
    arguments = parser.parse_args()
    pin = f"keras=={keras.__version__}"
    if pin not in supported_versions.lower_bounds():
        print(
            f"Run this with {', '.join(supported_versions.lower_bounds())}, so that "
            f"all supported versions can read the files. This is {pin}.",
            file=sys.stderr,
        )
        return 1
    folder = FOLDER / __version__
    if folder.exists() and not arguments.again:
        print(
            f"{folder} is there. Raise the version first; if {__version__} is not "
            "released, replace it by --again.",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        write(pathlib.Path(temporary))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(temporary, folder)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    print(f"{folder}: {len(sizes)} files, {sum(sizes):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
