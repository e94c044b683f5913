"""Kernel quantizers: what a quantized filter becomes.

| name for `get` | class |
|---|---|
| `"binary"` | `BinaryQuantizer()` |
| `"ternary"` | `TernaryQuantizer()` |
| `"sign"` | `SignQuantizer()` |
| `"uniform-2"` … `"uniform-8"` | `UniformQuantizer(num_bits)` |
| `"lq-1"` … `"lq-8"` | `LearnedQuantizer(num_bits)` |

The mathematics of learned codebooks is in `codebook.py`.

A new one is a subclass of `Quantizer` with `@keras_sq.quantizers.register`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from keras_sq.core import checks, named_objects
from keras_sq.core.types import Config
from keras_sq.quantizers.base import Quantizer as Quantizer
from keras_sq.quantizers.base import register as register
from keras_sq.quantizers.binary import BinaryQuantizer as BinaryQuantizer
from keras_sq.quantizers.learned import LearnedQuantizer as LearnedQuantizer
from keras_sq.quantizers.sign import SignQuantizer as SignQuantizer
from keras_sq.quantizers.ternary import TernaryQuantizer as TernaryQuantizer
from keras_sq.quantizers.uniform import UniformQuantizer as UniformQuantizer

_BY_NAME: dict[str, Callable[[], Quantizer]] = {
    "binary": BinaryQuantizer,
    "ternary": TernaryQuantizer,
    "sign": SignQuantizer,
    **{f"uniform-{bits}": partial(UniformQuantizer, bits) for bits in range(2, 9)},
    **{f"lq-{bits}": partial(LearnedQuantizer, bits) for bits in range(1, 9)},
}


def names() -> list[str]:
    """Returns the names that `get` knows.

    Example:
        >>> keras_sq.quantizers.names()[:4]
        ['binary', 'ternary', 'sign', 'uniform-2']
    """
    return list(_BY_NAME)


def get(identifier: Any) -> Quantizer:
    """Returns the quantizer that `identifier` stands for.

    Args:
        identifier: A `Quantizer`, one of its names, or what `serialize`
            returned.

    Raises:
        ValueError: If the name is unknown (the known ones are listed).
        TypeError: If it is something else altogether.

    Example:
        >>> keras_sq.quantizers.get("uniform-4")
        UniformQuantizer(num_bits=4, scale='output_error')
    """
    expected = (
        "A quantizer must be a `keras_sq.quantizers.Quantizer`, a name ({names}) or a "
        "serialized quantizer."
    )
    return named_objects.lookup(
        identifier, Quantizer, _BY_NAME, deserialize, "quantizer", expected
    )


def serialize(quantizer: Quantizer) -> Config:
    """Returns the quantizer as a JSON-serializable dict.

    Example:
        >>> quantizer = keras_sq.quantizers.get("uniform-4")
        >>> config = keras_sq.quantizers.serialize(quantizer)
        >>> keras_sq.quantizers.deserialize(config) == quantizer
        True
    """
    return keras.saving.serialize_keras_object(quantizer)  # type: ignore[no-any-return]


def deserialize(config: Config) -> Quantizer:
    """Returns the quantizer that `serialize` described.

    Raises:
        TypeError: If the dict describes something else.

    Example:
        >>> config = keras_sq.quantizers.serialize(keras_sq.quantizers.get("lq-2"))
        >>> keras_sq.quantizers.deserialize(config)
        LearnedQuantizer(num_bits=2)
    """
    # Any quantizer: to mypy, an abstract class is no `type`.
    return checks.deserialized(config, Quantizer, "a quantizer")  # type: ignore[type-abstract]
