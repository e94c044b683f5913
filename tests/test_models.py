"""The networks: published sizes, structure, names, and that they learn."""

import math

import keras
import numpy as np
import pytest

from keras_sq import models
from keras_sq.models.mlp import mlp
from keras_sq.models.resnet import resnet

CIFAR = ((32, 32, 3), 10)
SMALL = ((8, 8, 1), 10)


def trainable(model):
    """Returns the number of trainable parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # He et al., table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M. The exact numbers
        # are those of akamaster/pytorch_resnet_cifar10, also option A.
        ("resnet20", 269722),
        ("resnet20_hard_tanh", 269722),
        ("resnet32", 464154),
        ("resnet44", 658586),
        ("resnet56", 853018),
        # mlcommons/tiny, training_log.txt: 78,666 in total.
        ("resnet8", 78186),
    ],
)
def test_parameters_are_as_published(name, published):
    assert trainable(models.get(name, *CIFAR)) == published


def test_resnet8_has_all_parameters_of_mlperf_tiny():
    assert models.get("resnet8", *CIFAR).count_params() == 78666


def test_resnet56_sq_has_the_down_sampling_convolutions_of_the_paper():
    model = models.get("resnet56_sq", *CIFAR)
    # Two 2 x 2 convolutions, each with a batch norm's scale and offset.
    extra = 2 * 2 * 16 * 32 + 2 * 32 + 2 * 2 * 32 * 64 + 2 * 64
    assert trainable(model) == 853018 + extra
    shortcut = model.get_layer("stage3_block1_shortcut")
    assert shortcut.kernel_size == shortcut.strides == (2, 2)
    # No ReLU after an addition.
    for layer in model.layers:
        if isinstance(layer, keras.layers.ReLU):
            assert "add" not in layer.input.name


def test_vgg9_layers_are_those_of_the_paper():
    model = models.get("vgg9", *CIFAR)
    sizes = [
        tuple(layer.kernel.shape)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    ]
    assert sizes == [
        (3, 3, 3, 64),
        (3, 3, 64, 64),
        (3, 3, 64, 128),
        (3, 3, 128, 128),
        (3, 3, 128, 256),
        (3, 3, 256, 256),
        (4096, 512),
        (512, 512),
        (512, 10),
    ]
    rates = [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)]
    assert rates == [0.25, 0.25, 0.25, 0.5, 0.5]


@pytest.mark.parametrize("name", models.NAMES)
def test_network_gives_logits_and_has_stable_names(name):
    model = models.get(name, *SMALL)
    logits = model(np.random.default_rng(0).normal(size=(3, *SMALL[0])))
    assert logits.shape == (3, 10)
    assert not np.allclose(keras.ops.sum(logits, axis=-1), 1.0)
    again = models.get(name, *SMALL)
    names = [layer.name for layer in model.layers if layer.weights]
    assert names == [layer.name for layer in again.layers if layer.weights]
    assert names[-1] == "logits"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["resnet20", "vgg9"])
def test_network_survives_saving(name, tmp_path):
    model = models.get(name, *CIFAR, weight_decay=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(images), loaded(images))


def test_identity_shortcut_keeps_even_pixels_and_appends_zeros():
    model = resnet((8, 8, 1), 10, depth=8)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    before = model.get_layer("stage1_block1_relu").output
    shortcut, _ = model.get_layer("stage2_block1_add").input
    ends = keras.Model(model.input, [before, shortcut])
    wide, narrow = ends.predict(images, verbose=0)
    np.testing.assert_array_equal(narrow[..., :16], wide[:, ::2, ::2])
    np.testing.assert_array_equal(narrow[..., 16:], 0.0)


def test_weight_decay_is_the_gradient_of_the_penalty():
    model = models.get("digits_cnn", *SMALL, weight_decay=0.01)
    kernels = [x.kernel for x in model.layers if hasattr(x, "kernel")]
    expected = 0.005 * sum(float(np.sum(np.square(kernel))) for kernel in kernels)
    assert len(model.losses) == len(kernels) == 4
    np.testing.assert_allclose(sum(float(x) for x in model.losses), expected, rtol=1e-5)
    assert not models.get("digits_cnn", *SMALL).losses


def test_mlp_takes_layer_sizes():
    model = mlp((8, 8, 1), 10, units=(20, 30, 40))
    assert model.get_layer("dense3").kernel.shape == (30, 40)
    with pytest.raises(ValueError, match="`units` must be at least 1"):
        mlp((8, 8, 1), 10, units=(0,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet-20", *CIFAR), "Did you mean 'resnet20'?"),
        (("alexnet", *CIFAR), "must be one of 'digits_cnn', 'mlp', 'resnet8'"),
        (("vgg9", (7, 32, 3), 10), "at least 8 x 8 pixels for the model 'vgg9'"),
        (("mlp", (8, 8), 10), r"must be \(height, width, channels\)"),
        (("mlp", (8, 0, 1), 10), "`input_shape` must be at least 1"),
        (("mlp", (8, 8, 1), 1), "`num_classes` must be at least 2"),
        (("mlp", (8, 8, 1), 10, -1e-4), "`weight_decay` must be a finite number"),
    ],
)
def test_bad_argument_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.get(*arguments)


def test_hard_tanh_takes_the_place_of_every_relu():
    names = [layer.name for layer in models.get("resnet8_hard_tanh", *CIFAR).layers]
    relus = [layer.name for layer in resnet(*CIFAR, depth=8).layers]
    assert names == [name.replace("_relu", "_hard_tanh") for name in relus]
    assert sum(name.endswith("_hard_tanh") for name in names) == 7
    x = keras.ops.array([-3.0, -0.5, 0.25, 2.0])
    layer = models.get("resnet8_hard_tanh", *CIFAR).get_layer("conv1_hard_tanh")
    assert keras.ops.convert_to_numpy(layer(x)).tolist() == [-1.0, -0.5, 0.25, 1.0]


def test_bad_resnet_raises():
    with pytest.raises(ValueError, match="`depth` must be 6 n"):
        resnet((8, 8, 1), 10, depth=18)
    with pytest.raises(ValueError, match="`shortcut` must be one of"):
        resnet((8, 8, 1), 10, shortcut="none")
    with pytest.raises(ValueError, match="`activation` must be one of 'relu', 'hard"):
        resnet((8, 8, 1), 10, activation="tanh")
