"""Stochastic quantization for Keras: binary, ternary and k-bit networks.

```python
sq_model = keras_sq.quantize_model(model, "ternary")
sq_model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
sq_model.fit(x, y, epochs=40, callbacks=[keras_sq.callbacks.StochasticQuantization()])
keras_sq.export(sq_model, "model.tflite")
```
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_sq.core import quiet_start as quiet_start  # First, before TensorFlow.

# isort: split

from keras_sq import callbacks as callbacks
from keras_sq import layers as layers
from keras_sq import quantizers as quantizers
from keras_sq import schedules as schedules
from keras_sq.analysis.bit_choice import BitChoice as BitChoice
from keras_sq.analysis.bit_choice import choose_bits as choose_bits
from keras_sq.analysis.bit_choice import choose_within as choose_within
from keras_sq.analysis.kernel_codes import KernelCodes as KernelCodes
from keras_sq.analysis.kernel_codes import get_codes as get_codes
from keras_sq.analysis.layer_sensitivity import Sensitivity as Sensitivity
from keras_sq.analysis.layer_sensitivity import sensitivity as sensitivity
from keras_sq.analysis.model_summary import ModelSummary as ModelSummary
from keras_sq.analysis.model_summary import summary as summary
from keras_sq.conversion import presets as presets
from keras_sq.conversion.batch_statistics import (
    reestimate_batch_norm as reestimate_batch_norm,
)
from keras_sq.conversion.distillation import distill as distill
from keras_sq.conversion.quantize import quantize_model as quantize_model
from keras_sq.conversion.strip import strip_quantization as strip_quantization
from keras_sq.core.version import __version__ as __version__
from keras_sq.export import export as export
from keras_sq.export import pack_file as pack_file
from keras_sq.export import unpack_file as unpack_file
from keras_sq.layers import register as register
from keras_sq.layers.masks import get_ratio as get_ratio
from keras_sq.layers.masks import set_ratio as set_ratio
from keras_sq.layers.selection import SoftRefresh as SoftRefresh
from keras_sq.quantizers import activations as activation_rules
from keras_sq.schedules import learning_rates as learning_rates

if TYPE_CHECKING:
    from keras_sq import datasets as datasets
    from keras_sq import models as models
    from keras_sq.analysis import plots as plots

_LAZY = {
    "datasets": "keras_sq.datasets",
    "models": "keras_sq.models",
    "plots": "keras_sq.analysis.plots",
}
"""Parts that are imported when they are asked for: not every user needs them."""


def __getattr__(name: str) -> Any:
    """Imports a part of the package that is not needed by the others."""
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module 'keras_sq' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names of the package, those not imported yet too."""
    return sorted({*globals(), *__all__})


__all__ = [
    "BitChoice",
    "KernelCodes",
    "ModelSummary",
    "Sensitivity",
    "SoftRefresh",
    "__version__",
    "activation_rules",
    "callbacks",
    "choose_bits",
    "choose_within",
    "datasets",
    "distill",
    "export",
    "get_codes",
    "get_ratio",
    "layers",
    "learning_rates",
    "models",
    "pack_file",
    "plots",
    "presets",
    "quantize_model",
    "quantizers",
    "reestimate_batch_norm",
    "register",
    "schedules",
    "sensitivity",
    "set_ratio",
    "strip_quantization",
    "summary",
    "unpack_file",
]
