"""Data to classify: read through TFDS, from memory or files, fed in order.

`load("digits")` needs no network and no file but the package's own; any
other name is a TensorFlow Datasets name that has been prepared in a folder
(or is downloaded when that is asked for). What comes back is standardized
with the statistics of the training split, and its order and augmentation
depend on nothing but the seed and the number of the epoch.

What lives here: `load` (`loading.py`), what is known of single data sets
(`settings.py`), the digits (`digits.py`), reading of what TFDS has prepared
(`reading.py`), the batches from memory (`batches.py`) and from files
(`streaming.py`), what is done with pixels (`images.py`) and sound (`sound.py`).

Design note: the settings of a data set can be read without TensorFlow, so that
`keras_sq.experiments` works where only JAX is installed. `load` and `Dataset` need
TensorFlow and TensorFlow Datasets, and import them when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_sq.datasets.settings import CROPS as CROPS
from keras_sq.datasets.settings import DIGITS as DIGITS
from keras_sq.datasets.settings import is_augmented as is_augmented

if TYPE_CHECKING:
    from keras_sq.datasets.batches import Dataset as Dataset
    from keras_sq.datasets.loading import load as load

_LAZY = {"Dataset": "batches", "load": "loading"}
"""Name -> module that needs TensorFlow."""


def __getattr__(name: str) -> Any:
    """Imports what needs TensorFlow when it is asked for."""
    if name in _LAZY:
        module = importlib.import_module(f"keras_sq.datasets.{_LAZY[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'keras_sq.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names of the package, those not imported yet too."""
    return sorted({*globals(), *_LAZY})
