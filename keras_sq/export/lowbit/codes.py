"""The integer codes of a matrix of weights, and the numbers they are multiples of.

Of a float file, codes are looked for as other targets do. In a full-integer file they
are hidden: the converter takes the largest weight of a filter for 127, so that codes
-6 to 6 became -127, -106, ... 127. Each code is the nearest of those that give 127.
"""

import dataclasses

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.levels import (
    MAX_CODE,
    filter_levels,
    filters_first,
    uniform_codes,
)
from keras_sq.export.tflite.weights import WeightTensor

LARGEST = 7
"""The largest code of 4 bits that is looked for: kernels are symmetric around 0."""

MAX_LEVELS = 16
"""The most values of 4 bits."""

RANGES = {"INT2": (-2, 1), "INT4": (-8, 7)}


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixCodes:
    """The codes of a matrix of weights.

    Attributes:
        codes: Int8 array of the weights' shape.
        scale: Float32 array `(filters,)`, what a code of 1 stands for.
    """

    codes: Array
    scale: Array

    @property
    def types(self) -> tuple[str, ...]:
        """The types that hold the codes, the narrowest first."""
        low, high = int(self.codes.min()), int(self.codes.max())
        return tuple(
            name
            for name, (least, most) in RANGES.items()
            if least <= low and high <= most
        )


def of_floats(array: Array) -> MatrixCodes | None:
    """Returns the codes of float weights; `None` if they are no multiples.

    Args:
        array: The weights, with the filters on the first axis.
    """
    matrix = filters_first(array, 0)
    levels = filter_levels(matrix, MAX_LEVELS)
    codes = None if levels is None else uniform_codes(levels)
    if levels is None or codes is None:
        return None
    places = levels.indices(matrix).astype(np.intp)
    values = np.take_along_axis(codes.codes, places, axis=1)
    return MatrixCodes(values.reshape(array.shape), codes.scale)


def of_integers(file: TFLiteFile, weight: WeightTensor) -> MatrixCodes | None:
    """Returns the codes behind int8 weights; `None` if there are none of 4 bits.

    Args:
        file: A full-integer file.
        weight: An int8 tensor with the filters on the first axis.
    """
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "INT8":
        return None
    matrix = filters_first(array, 0).astype(np.int16)
    scale = np.asarray(weight.tensor.quantization.scale, np.float32)
    filters = len(matrix)
    scale = np.broadcast_to(scale, (filters,)) if len(scale) == 1 else scale
    codes = np.zeros(matrix.shape, np.int8)
    largest = np.ones(filters)
    missing = np.any(matrix != 0, axis=1)
    if np.any(np.abs(matrix[missing]).max(axis=1) != MAX_CODE):
        return None
    for count in range(1, LARGEST + 1):
        rows = np.flatnonzero(missing)
        multiples = matrix[rows] * (count / MAX_CODE)
        rounded = np.rint(multiples)
        # Half a step of the converter's rounding, and what float32 adds.
        near = np.abs(rounded * (MAX_CODE / count) - matrix[rows]) <= 0.5 + 2.0**-10
        done = rows[np.all(near, axis=1)]
        codes[done] = np.rint(matrix[done] * (count / MAX_CODE)).astype(np.int8)
        largest[done] = count
        missing[done] = False
    if missing.any():
        return None
    real = (scale.astype("f8") * (MAX_CODE / largest)).astype(np.float32)
    return MatrixCodes(codes.reshape(array.shape), real)
