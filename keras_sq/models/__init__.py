"""The papers' networks and small ones for microcontrollers, by name.

    model = keras_sq.models.get("resnet20", (32, 32, 3), 10)

Every network is a plain Keras model. Its layers have fixed names, so that
`skip=["conv1"]` means the same every time. The networks of `NAMES` classify images,
or what looks like one, and return logits (no softmax); `NETWORKS` has those of other
kinds too, and says what each takes and returns.

One family of networks a file; `describing.py` has what a network says of itself,
`saved.py` makes one from a saved model of the same layers.
"""

import os
from functools import partial

from keras_sq.core import checks
from keras_sq.core.types import Model
from keras_sq.models.alexnet import alexnet_bn as alexnet_bn
from keras_sq.models.describing import Network as Network
from keras_sq.models.digits_cnn import digits_cnn as digits_cnn
from keras_sq.models.mlp import mlp as mlp
from keras_sq.models.mlperf_tiny import autoencoder as autoencoder
from keras_sq.models.mlperf_tiny import ds_cnn as ds_cnn
from keras_sq.models.mlperf_tiny import mobilenet_v1 as mobilenet_v1
from keras_sq.models.mlperf_tiny import resnet8 as resnet8
from keras_sq.models.resnet import resnet as resnet
from keras_sq.models.resnet_imagenet import resnet_imagenet as resnet_imagenet
from keras_sq.models.saved import load_source, take_over
from keras_sq.models.vgg import vgg9 as vgg9
from keras_sq.models.vgg import vgg_small as vgg_small

NETWORKS: dict[str, Network] = {
    "digits_cnn": Network(digits_cnn),
    "mlp": Network(mlp),
    "resnet8": Network(resnet8),
    "resnet20": Network(partial(resnet, depth=20)),
    "resnet32": Network(partial(resnet, depth=32)),
    "resnet44": Network(partial(resnet, depth=44)),
    "resnet56": Network(partial(resnet, depth=56)),
    "resnet56_sq": Network(partial(resnet, depth=56, shortcut="convolution")),
    # For binary activations. `resnet8` above is MLPerf Tiny's, another network.
    "resnet8_hard_tanh": Network(partial(resnet, depth=8, activation="hard_tanh")),
    "resnet20_hard_tanh": Network(partial(resnet, depth=20, activation="hard_tanh")),
    "resnet56_hard_tanh": Network(partial(resnet, depth=56, activation="hard_tanh")),
    "vgg9": Network(vgg9, min_size=8),
    "vgg_small": Network(vgg_small, min_size=8),
    "alexnet_bn": Network(alexnet_bn, min_size=63),
    "resnet18": Network(partial(resnet_imagenet, depth=18)),
    "resnet18_sq": Network(partial(resnet_imagenet, depth=18, project_first=True)),
    "resnet34": Network(partial(resnet_imagenet, depth=34)),
    "resnet50": Network(partial(resnet_imagenet, depth=50)),
    # For binary activations, the second of each for images of 32 x 32.
    "resnet18_hard_tanh": Network(
        partial(resnet_imagenet, depth=18, activation="hard_tanh")
    ),
    "resnet18_cifar_hard_tanh": Network(
        partial(resnet_imagenet, depth=18, stem="cifar", activation="hard_tanh")
    ),
    "resnet50_hard_tanh": Network(
        partial(resnet_imagenet, depth=50, activation="hard_tanh")
    ),
    "resnet50_cifar_hard_tanh": Network(
        partial(resnet_imagenet, depth=50, stem="cifar", activation="hard_tanh")
    ),
    "ds_cnn": Network(ds_cnn),
    "mobilenet_v1": Network(mobilenet_v1),
    "autoencoder": Network(autoencoder, axes=("features",), returns="a reconstruction"),
}
"""What `get` knows."""

NAMES = tuple(name for name, network in NETWORKS.items() if network.classifies)
"""The classifiers among them: images in, logits out."""

MIN_SIZE = {name: NETWORKS[name].min_size for name in NAMES}
"""Smallest image side (pixels) of the classifiers."""


def get(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int | None = None,
    weight_decay: float = 0.0,
) -> Model:
    """Builds a network by its name.

    Args:
        name: A key of `NETWORKS`.
        input_shape: Of one example: (height, width, channels); of the autoencoder
            (features,).
        num_classes: Number of logits, 2 or more; `None` for the autoencoder.
        weight_decay: Float >= 0: adds `weight_decay / 2 * sum(kernel ** 2)`
            of every kernel to the loss, whose gradient is `weight_decay *
            kernel`. Under SQ the kernel is the latent one.

    Returns:
        A built `keras.Model` that is not compiled.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If the name is unknown, the shape is not one that the network
            takes, the images are too small, or classes are asked of a network that
            has none.

    Example:
        >>> keras_sq.models.get("resnet8", (32, 32, 3), 10).count_params()
        78666
        >>> keras_sq.models.get("autoencoder", (640,)).output_shape
        (None, 640)
    """
    network = NETWORKS[checks.one_of("name", name, NETWORKS)]
    network.check_input(name, input_shape)
    if weight_decay != 0:
        checks.positive("weight_decay", weight_decay)
    if network.classifies:
        checks.integer("num_classes", num_classes, minimum=2)
        return network.build(input_shape, num_classes, weight_decay=weight_decay)
    if num_classes is not None:
        raise ValueError(
            f"Argument `num_classes` must be None for the model {name!r}, which "
            f"returns {network.returns}. Received: num_classes={num_classes}"
        )
    return network.build(input_shape, weight_decay=weight_decay)


def from_saved(
    name: str, path: str | os.PathLike[str], *, weight_decay: float = 0.0
) -> Model:
    """Builds a network with the weights of a saved model that has the same layers.

    For networks that were trained elsewhere, such as the benchmark's own of MLPerf
    Tiny: names of layers do not matter, nor a softmax at the end. Layers are matched
    by the shapes of their weights, in order, and both models must compute the same.

    Args:
        name: A key of `NETWORKS`.
        path: Of a `.keras` or `.h5` file, of Keras 2 as well. No code in it is run.
        weight_decay: As in `get`.

    Returns:
        A `keras.Model` as of `get`: fixed names, logits, not compiled. Its input is
        that of the saved model (of the autoencoder flattened).

    Raises:
        OSError: If the file is not there.
        ValueError: If the name is unknown, the file cannot be loaded, or holds
            another network.

    Example:
        >>> import tempfile
        >>> trained = keras_sq.models.get("mlp", (4, 4, 1), 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trained.save(f"{folder}/trained.keras")
        ...     model = keras_sq.models.from_saved("mlp", f"{folder}/trained.keras")
        >>> x = np.ones((1, 4, 4, 1), "float32")
        >>> bool(np.allclose(model(x), trained(x)))
        True
    """
    network = NETWORKS[checks.one_of("name", name, NETWORKS)]
    source, input_shape = load_source(name, network, path)
    classes = source.output_shape[-1] if network.classifies else None
    model = get(name, input_shape, classes, weight_decay)
    take_over(source, model, name, path)
    return model
