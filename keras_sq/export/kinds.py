"""The kinds of file that argument `target` of `export` chooses from.

What a command line and the checks of arguments need to know of them; `targets.py`
makes, verifies and writes the files. This module imports no TensorFlow.
"""

import dataclasses
from typing import Any

from keras_sq.core import checks
from keras_sq.export import runtimes


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Value of argument `target`.
        description: What the file is, in one line.
        int8_activations: Whether activations are int8, where there is representative
            data. Such files are compared with Keras in the mean only.
        needs_examples: Whether there must be representative data.
        single: Who takes one example at a time, where its files do.
        type_name: Type of its codes, where a runtime may lack the type.
        runtime: Name of the only runtime that the files are for, or `None`.
        optimizes: Whether argument `optimize` chooses between size and speed.
    """

    name: str
    description: str
    int8_activations: bool = False
    needs_examples: bool = False
    single: str | None = None
    type_name: str | None = None
    runtime: str | None = None
    optimizes: bool = False

    def types(self, oldest_runtime: str | None) -> tuple[str, ...]:
        """Returns the types of codes that a file may have, the smallest first.

        Args:
            oldest_runtime: The oldest runtime that has to run the file, see
                `keras_sq.export`.

        Raises:
            TypeError: If `oldest_runtime` has the wrong type.
            ValueError: If it has a wrong value, or the target is not for it.
        """
        types = runtimes.types(oldest_runtime)
        if oldest_runtime is None:
            return types
        if self.runtime is not None:
            raise ValueError(
                f"Target '{self.name}' is for {self.runtime}, so there is no "
                "`oldest_runtime` to choose. Received: "
                f"oldest_runtime={oldest_runtime!r}"
            )
        if self.type_name is not None and self.type_name not in types:
            needed = " or ".join(runtimes.RUNTIMES_OF_TYPES[self.type_name])
            raise ValueError(
                f"Target '{self.name}' needs {needed}. Received: oldest_runtime="
                f"{oldest_runtime!r}. Choose target 'small' for older ones."
            )
        return types


_KINDS = (
    Kind("float", "float32 weights"),
    Kind("fast", "int8 codes, unfolded to float32 when loaded"),
    Kind("int2", "2-bit codes, where they fit", type_name="INT2"),
    Kind("int4", "4-bit codes, where they fit", type_name="INT4"),
    Kind(
        "lowbit",
        "2- and 4-bit weights that the runtime multiplies as they are; with "
        "representative data on int8 activations",
        int8_activations=True,
        type_name="INT2 weights",
        optimizes=True,
    ),
    Kind(
        "small",
        "the smallest of packed levels, 1.07 to 5.33 bits a weight, and 2-, 4- or "
        "8-bit codes; with representative data on int8 activations",
        int8_activations=True,
    ),
    Kind(
        "int8",
        "int8 weights and activations",
        int8_activations=True,
        needs_examples=True,
    ),
    Kind(
        "mcu",
        "int8 activations, weights in lookup tables of TensorFlow Lite for "
        "Microcontrollers, and C sources",
        int8_activations=True,
        needs_examples=True,
        single="microcontrollers",
        runtime="TensorFlow Lite for Microcontrollers",
    ),
    Kind(
        "lce",
        "binary convolutions on single bits, for Larq Compute Engine",
        single="files for Larq Compute Engine",
        runtime="Larq Compute Engine",
    ),
)

KINDS = {kind.name: kind for kind in _KINDS}
"""Name -> kind."""


def get(name: Any) -> Kind:
    """Returns a kind by name.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    return KINDS[checks.one_of("target", name, KINDS)]
