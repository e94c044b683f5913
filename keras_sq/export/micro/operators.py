"""How TensorFlow Lite Micro's C++ library calls its operators.

A program registers the operators that its model needs, one call each, with a
`MicroMutableOpResolver`. The names of most methods follow one rule.
"""

from collections.abc import Iterable

from keras_sq.export.errors import ExportError

_REGULAR = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS
    DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU
    EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD
    FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF
    L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
    LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PRELU QUANTIZE READ_VARIABLE REDUCE_ALL
    REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR
    REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND
    SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE
    STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNPACK VAR_HANDLE WHILE
    ZEROS_LIKE
"""


def _method(name: str) -> str:
    words = name.split("_")
    return "Add" + "".join(x if x[0].isdigit() else x.capitalize() for x in words)


ADD_METHODS = {name: _method(name) for name in _REGULAR.split()} | {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "TFLM_DECODE": "AddDecode",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
"""Name of an operator in a file -> name of the method that registers it."""


def add_methods(operators: Iterable[str]) -> list[str]:
    """Returns the methods that register operators, sorted.

    Args:
        operators: Their names in a file, such as `"CONV_2D"`.

    Raises:
        ExportError: If the library has none for one of them.
    """
    names = set(operators)
    missing = sorted(names - set(ADD_METHODS))
    if missing:
        raise ExportError(
            f"TensorFlow Lite Micro has no operator {', '.join(missing)}. Replace the "
            "layer that needs it, or export for another target."
        )
    return sorted(ADD_METHODS[name] for name in names)
