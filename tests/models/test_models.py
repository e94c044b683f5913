"""The networks: published sizes, structure, names, and that they learn."""

import math
import re

import keras
import numpy as np
import pytest

from keras_sq import models
from keras_sq.models import _blocks
from keras_sq.models.mlp import mlp
from keras_sq.models.mlperf_tiny import mobilenet_v1
from keras_sq.models.resnet import resnet
from keras_sq.models.resnet_imagenet import resnet_imagenet

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
        ("resnet56_hard_tanh", 853018),
        ("resnet32", 464154),
        ("resnet44", 658586),
        ("resnet56", 853018),
        # kuangliu/pytorch-cifar, also with 64C3 as stem.
        ("resnet18_cifar_hard_tanh", 11173962),
        ("resnet50_cifar_hard_tanh", 23520842),
        # mlcommons/tiny, training_log.txt: 78,666 in total.
        ("resnet8", 78186),
        # Summed up from the released code, cifar10-vgg-small.py: kernels of six
        # convolutions, a dense layer with bias, a scale and an offset a channel.
        ("vgg_small", 4574592 + 81930 + 2 * 1792),
    ],
)
def test_parameters_are_as_published(name, published, no_values):
    assert trainable(models.get(name, *CIFAR)) == published


@pytest.mark.parametrize(
    ("name", "arguments", "published"),
    [
        # The summaries that Keras prints of the reference's networks.
        ("resnet8", CIFAR, 78666),
        ("ds_cnn", ((49, 10, 1), 12), 24908),
        ("mobilenet_v1", ((96, 96, 3), 2), 221794),
        ("autoencoder", ((640,),), 269992),
    ],
)
def test_all_parameters_are_those_of_mlperf_tiny(name, arguments, published):
    assert models.get(name, *arguments).count_params() == published


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's documentation of ResNet18_Weights and so on.
        ("resnet18", 11689512),
        ("resnet34", 21797672),
        ("resnet50", 25557032),
        ("resnet18_hard_tanh", 11689512),
        ("resnet50_hard_tanh", 25557032),
        # Dong et al.'s train_test.prototxt: one 1 x 1 convolution more, 64 to 64.
        ("resnet18_sq", 11689512 + 64 * 64 + 2 * 64),
        # Likewise: five convolutions without groups, three dense layers (the last
        # with bias), a scale and an offset a channel. The paper says no number.
        ("alexnet_bn", 3745824 + 37748736 + 16777216 + 4097000 + 2 * 9568),
    ],
)
def test_parameters_of_imagenet_networks_are_as_published(name, published, no_values):
    assert trainable(models.get(name, (224, 224, 3), 1000)) == published


@pytest.fixture
def no_values(monkeypatch):
    """Kernels are zeros: drawing tens of millions of numbers takes seconds."""
    real = _blocks.kernel_settings

    def settings(weight_decay):
        return real(weight_decay) | {"kernel_initializer": "zeros"}

    monkeypatch.setattr(_blocks, "kernel_settings", settings)


def kernels(model):
    """Returns name -> shape of the kernels, in the order of the layers."""
    return {
        layer.name: tuple(layer.kernel.shape)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    }


def test_alexnet_is_that_of_the_released_code(no_values):
    model = models.get("alexnet_bn", (224, 224, 3), 1000)
    assert kernels(model) == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 96, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 384, 384),
        "conv5": (3, 3, 384, 256),
        "dense1": (9216, 4096),
        "dense2": (4096, 4096),
        "logits": (4096, 1000),
    }
    sides = [
        model.get_layer(f"{name}").output.shape[1]
        for name in ("conv1", "pool1", "pool2", "conv5", "pool5")
    ]
    assert sides == [55, 27, 13, 13, 6]


def test_smallest_size_is_the_smallest_that_can_be_built(no_values):
    needy = {name: side for name, side in models.MIN_SIZE.items() if side > 1}
    assert needy == {"vgg9": 8, "vgg_small": 8, "alexnet_bn": 63}
    for name, side in needy.items():
        models.get(name, (side, side, 3), 10)
        with pytest.raises(ValueError, match=f"at least {side} x {side} pixels"):
            models.get(name, (side, side - 1, 3), 10)
        with pytest.raises(ValueError, match=r"negative|zero|must be positive"):
            models.NETWORKS[name].build((side - 1, side - 1, 3), 10)


def test_resnet50_has_its_stride_in_the_three_by_three_convolution(no_values):
    model = models.get("resnet50", (64, 64, 3), 10)
    found = kernels(model)
    block = {x.split("_")[-1]: found[x] for x in found if "stage2_block1" in x}
    assert block == {
        "conv1": (1, 1, 256, 128),
        "conv2": (3, 3, 128, 128),
        "conv3": (1, 1, 128, 512),
        "shortcut": (1, 1, 256, 512),
    }
    for name, strides in {"conv1": 1, "conv2": 2, "conv3": 1, "shortcut": 2}.items():
        assert model.get_layer(f"stage2_block1_{name}").strides == (strides, strides)
    # The only other shortcuts with weights are those where channels change.
    assert [name for name in found if "shortcut" in name] == [
        f"stage{stage}_block1_shortcut" for stage in (1, 2, 3, 4)
    ]


def test_first_shortcut_of_resnet18_sq_is_a_convolution(no_values):
    shortcuts = {
        name: [x for x in kernels(models.get(name, (32, 32, 3), 10)) if "shortcut" in x]
        for name in ("resnet18", "resnet18_sq")
    }
    assert shortcuts["resnet18"] == [f"stage{x}_block1_shortcut" for x in (2, 3, 4)]
    assert shortcuts["resnet18_sq"] == [
        f"stage{x}_block1_shortcut" for x in (1, 2, 3, 4)
    ]


def test_vgg_small_normalizes_after_pooling():
    model = models.get("vgg_small", *CIFAR)
    layers = [type(layer).__name__ for layer in model.layers[1:8]]
    assert layers == [
        *("Conv2D", "BatchNormalization", "ReLU"),
        *("Conv2D", "MaxPooling2D", "BatchNormalization", "ReLU"),
    ]


def test_mobilenet_narrows_five_times():
    model = models.get("mobilenet_v1", (96, 96, 3), 2)
    outputs = [
        model.get_layer(f"block{number}_pointwise").output.shape[1:]
        for number in (1, 2, 3, 5, 7, 11, 12, 13)
    ]
    assert outputs == [
        *((48, 48, 16), (24, 24, 32), (24, 24, 32), (12, 12, 64), (6, 6, 128)),
        *((6, 6, 128), (3, 3, 256), (3, 3, 256)),
    ]
    wide = mobilenet_v1((96, 96, 3), 1000, width=1.0)
    assert wide.get_layer("block13_pointwise").kernel.shape == (1, 1, 1024, 1024)
    with pytest.raises(ValueError, match="`width` must be at least 1/32"):
        mobilenet_v1((96, 96, 3), 2, width=0.03)


def test_autoencoder_is_narrow_in_the_middle():
    model = models.get("autoencoder", (640,), weight_decay=1e-4)
    shapes = list(kernels(model).values())
    assert [shape[1] for shape in shapes] == [128] * 4 + [8] + [128] * 4 + [640]
    assert len(model.losses) == 10
    assert model.output_shape == model.input_shape == (None, 640)


def test_networks_say_what_they_are():
    others = {name: x for name, x in models.NETWORKS.items() if not x.classifies}
    assert list(others) == ["autoencoder"]
    assert others["autoencoder"].axes == ("features",)
    assert [*models.NAMES, *others] == list(models.NETWORKS)


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
    side = max(models.MIN_SIZE[name], 8)
    model = models.get(name, (side, side, 1), 10)
    images = np.random.default_rng(0).normal(size=(3, side, side, 1))
    logits = model(images)
    assert logits.shape == (3, 10)
    assert not np.allclose(keras.ops.sum(logits, axis=-1), 1.0)
    # The names that Keras makes up go on counting from model to model.
    names = [layer.name for layer in model.layers if layer.weights]
    assert not [x for x in names if re.search(r"conv2d|dense_|normalization", x)]
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
        (("autoencoder", (28, 28, 1)), r"must be \(features,\) for the model 'autoen"),
        (("autoencoder", (640,), 10), "must be None for .*, which returns a reconstr"),
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


def test_classifier_without_classes_raises():
    with pytest.raises(TypeError, match="`num_classes` must be an integer"):
        models.get("resnet8", (32, 32, 3))


def test_hard_tanh_takes_the_place_of_every_relu():
    names = [layer.name for layer in models.get("resnet8_hard_tanh", *CIFAR).layers]
    relus = [layer.name for layer in resnet(*CIFAR, depth=8).layers]
    assert names == [name.replace("_relu", "_hard_tanh") for name in relus]
    assert sum(name.endswith("_hard_tanh") for name in names) == 7
    x = keras.ops.array([-3.0, -0.5, 0.25, 2.0])
    layer = models.get("resnet8_hard_tanh", *CIFAR).get_layer("conv1_hard_tanh")
    assert keras.ops.convert_to_numpy(layer(x)).tolist() == [-1.0, -0.5, 0.25, 1.0]


@pytest.mark.parametrize("name", ["resnet18_hard_tanh", "resnet50_cifar_hard_tanh"])
def test_hard_tanh_takes_the_place_of_every_relu_of_imagenet_networks(name, no_values):
    names = [layer.name for layer in models.get(name, (64, 64, 3), 10).layers]
    assert not [name for name in names if name.endswith("_relu")]
    plain = models.get(name.partition("_")[0], (64, 64, 3), 10).layers
    relus = sum(layer.name.endswith("_relu") for layer in plain)
    assert sum(name.endswith("_hard_tanh") for name in names) == relus


def test_stem_for_small_images_keeps_their_size(no_values):
    model = models.get("resnet18_cifar_hard_tanh", (32, 32, 3), 10)
    assert model.get_layer("stage1_block1_conv1").output.shape[1:] == (32, 32, 64)
    assert model.get_layer("stage4_block1_conv1").output.shape[1:] == (4, 4, 512)


def test_bad_imagenet_resnet_raises():
    with pytest.raises(ValueError, match="Argument `stem` must be .*'cifar'"):
        resnet_imagenet((32, 32, 3), 10, stem="small")
    with pytest.raises(ValueError, match="Argument `activation` must be"):
        resnet_imagenet((32, 32, 3), 10, activation="tanh")


def test_bad_resnet_raises():
    with pytest.raises(ValueError, match="`depth` must be 6 n"):
        resnet((8, 8, 1), 10, depth=18)
    with pytest.raises(ValueError, match="`shortcut` must be one of"):
        resnet((8, 8, 1), 10, shortcut="none")
    with pytest.raises(ValueError, match="`activation` must be one of 'relu', 'hard"):
        resnet((8, 8, 1), 10, activation="tanh")
    with pytest.raises(ValueError, match="`depth` must be 18, 34 or 50"):
        models.resnet_imagenet((8, 8, 1), 10, depth=101)
