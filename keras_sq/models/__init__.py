"""The papers' networks and small ones for microcontrollers, by name.

    model = keras_sq.models.get("resnet20", (32, 32, 3), 10)

Every network is a plain Keras model that returns logits (no softmax). Its
layers have fixed names, so that `skip=["conv1"]` means the same every time.
One family of networks a file.
"""

from collections.abc import Callable
from functools import partial

from keras_sq import _checks
from keras_sq.models.digits_cnn import digits_cnn as digits_cnn
from keras_sq.models.mlp import mlp as mlp
from keras_sq.models.mlperf_tiny import resnet8 as resnet8
from keras_sq.models.resnet import resnet as resnet
from keras_sq.models.vgg import vgg9 as vgg9
from keras_sq.types import Model

_BUILDERS: dict[str, Callable[..., Model]] = {
    "digits_cnn": digits_cnn,
    "mlp": mlp,
    "resnet8": resnet8,
    "resnet20": partial(resnet, depth=20),
    "resnet32": partial(resnet, depth=32),
    "resnet44": partial(resnet, depth=44),
    "resnet56": partial(resnet, depth=56),
    "resnet56_sq": partial(resnet, depth=56, shortcut="convolution"),
    # For binary activations. `resnet8` above is MLPerf Tiny's, another network.
    "resnet8_hard_tanh": partial(resnet, depth=8, activation="hard_tanh"),
    "resnet20_hard_tanh": partial(resnet, depth=20, activation="hard_tanh"),
    "vgg9": vgg9,
}

NAMES = tuple(_BUILDERS)
"""What `get` knows."""

MIN_SIZE = {"vgg9": 8}
"""Smallest image side (pixels) of the networks that need more than one."""


def get(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    weight_decay: float = 0.0,
) -> Model:
    """Builds a network by its name.

    Args:
        name: One of `NAMES`.
        input_shape: Of one image: (height, width, channels).
        num_classes: Number of logits, 2 or more.
        weight_decay: Float >= 0: adds `weight_decay / 2 * sum(kernel ** 2)`
            of every kernel to the loss, whose gradient is `weight_decay *
            kernel`. Under SQ the kernel is the latent one.

    Returns:
        A built `keras.Model` that is not compiled.

    Raises:
        ValueError: If the name is unknown, or the images are too small.

    Example:
        >>> keras_sq.models.get("resnet8", (32, 32, 3), 10).count_params()
        78666
    """
    _checks.one_of("name", name, NAMES)
    _checks.integer("num_classes", num_classes, minimum=2)
    if len(input_shape) != 3:
        raise ValueError(
            "Argument `input_shape` must be (height, width, channels). "
            f"Received: input_shape={input_shape}"
        )
    for side in input_shape:
        _checks.integer("input_shape", side, minimum=1)
    smallest = MIN_SIZE.get(name, 1)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"Argument `input_shape` must be at least {smallest} x {smallest} "
            f"pixels for the model {name!r}. Received: input_shape={input_shape}"
        )
    if weight_decay != 0:
        _checks.positive("weight_decay", weight_decay)
    return _BUILDERS[name](input_shape, num_classes, weight_decay=weight_decay)
