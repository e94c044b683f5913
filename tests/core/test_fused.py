"""What the fused functions of a large kernel compute, and what they allocate."""

import re

import numpy as np
import pytest
from backends import tensor
from keras import ops

from keras_sq.core import compilation
from keras_sq.layers import kernel_functions
from keras_sq.quantizers import get

ROWS, FILTERS = 1000, 300  # Above `FUSED_MIN_SIZE`, and no power of two.
QUANTIZERS = ["binary", "ternary", "uniform-4", "sign"]


def kernel():
    rng = np.random.default_rng(0)
    return tensor(rng.normal(size=(ROWS, FILTERS)).astype("float32"))


def mask():
    return tensor(np.arange(FILTERS)[None] % 2 == 0)


def forward_function(name, full_precision):
    return kernel_functions.forward_function(
        get(name), (1,), "float32", full_precision, True
    )


def by_xla(dispatch):
    """Returns the compiled function inside, which has a compiler's output."""
    import tensorflow as tf

    cells = [cell.cell_contents for cell in dispatch.__closure__]
    functions = [
        f for f in cells if isinstance(f, tf.types.experimental.GenericFunction)
    ]
    (found,) = [f for f in functions if f._jit_compile]
    return found


def kernel_sized(dispatch, *arguments):
    """Returns the compiled operations that write a whole kernel."""
    make = by_xla(dispatch).experimental_get_compiler_ir(*arguments)
    entry = make(stage="optimized_hlo").split("ENTRY")[1]
    sized = []
    for line in entry.splitlines()[1:]:
        found = re.match(r"\s*(?:ROOT )?%\S+ = f32\[([\d,]+)\]\S* (\w[\w-]*)\(", line)
        if found is None:
            continue
        size = np.prod([int(n) for n in found[1].split(",")])
        kind = found[2]
        if kind == "call" and re.search(r"to_apply=%parallel_\w*fusion\b", line):
            kind = "fusion"  # Of TensorFlow 2.20: one that several threads share.
        if size >= ROWS * FILTERS and kind not in ("parameter", "bitcast"):
            sized.append(kind)
    return sized


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_forward_allocates_one_copy_of_the_kernel(name):
    for full_precision in ("identity", "clip"):
        function = forward_function(name, full_precision)
        assert kernel_sized(function, kernel(), mask()) == ["fusion"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_errors_allocate_no_copy_of_the_kernel(name):
    function = kernel_functions.error_function(get(name), (1,), "filter")
    assert kernel_sized(function, kernel()) == []


@pytest.mark.parametrize("name", QUANTIZERS)
def test_large_kernels_are_fused_to_the_same_result(name):
    assert ROWS * FILTERS >= compilation.FUSED_MIN_SIZE
    for full_precision, limit in (("identity", np.inf), ("clip", 1.0)):
        function = forward_function(name, full_precision)
        rest = np.clip(kernel(), -limit, limit)
        expected = np.where(mask(), get(name)(kernel()), rest)
        np.testing.assert_allclose(function(kernel(), mask()), expected, rtol=1e-5)
    errors = kernel_functions.error_function(get(name), (1,), "filter")
    np.testing.assert_allclose(
        errors(kernel()), get(name).filter_errors(kernel()), rtol=1e-5
    )


@pytest.mark.tensorflow
def test_without_xla_the_result_is_the_same(monkeypatch):
    function = forward_function("binary", "identity")
    expected = function(kernel(), mask())
    monkeypatch.setattr(compilation, "_xla_works", lambda: False)
    np.testing.assert_allclose(function(kernel(), mask()), expected, rtol=1e-6)


@pytest.mark.tensorflow
def test_small_kernels_of_all_shapes_are_traced_once():
    import tensorflow as tf

    traced = []

    def absolute(kernel, factor):
        traced.append(tuple(kernel.shape))
        return abs(kernel) * factor

    function = compilation.fused(absolute, lambda kernel, factor: [kernel.shape])
    for rows in range(2, 6):
        small = tensor(np.full((rows, 3), -2.0, "float32"))
        np.testing.assert_array_equal(function(small, tensor(0.5)), np.ones((rows, 3)))
    assert traced == [(None, None)]
    # What calls it in a graph knows the shape of the result.
    outer = tf.function(lambda w: ops.reshape(function(w, 0.5 * w[0, 0]), (-1,)))
    known = outer.get_concrete_function(tf.TensorSpec((5, 3))).output_shapes
    assert known == (15,)
    assert len(traced) == 1
    # A large one is compiled for its shape.
    function(kernel(), tensor(0.5))
    assert traced[1:] == [(ROWS, FILTERS)]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["ternary", "uniform-4", "lq-2"])
def test_quantizers_are_traced_once_for_all_layouts(name, monkeypatch):
    shapes = []
    quantizer = get(name)
    method = type(quantizer).quantize

    def quantize(self, kernel, *fitted):
        shapes.append(tuple(kernel.shape))
        return method(self, kernel, *fitted)

    monkeypatch.setattr(type(quantizer), "quantize", quantize)
    kernel_functions.forward_function.cache_clear()
    kernel_functions._traced_method.cache_clear()
    rng = np.random.default_rng(0)
    for shape, axes in (((6, 4), (1,)), ((3, 3, 2, 5), (3,)), ((3, 3, 4, 2), (2, 3))):
        values = rng.normal(size=shape).astype("float32")
        filters = int(np.prod([shape[axis] for axis in axes]))
        state = [tensor(np.ones((2, filters), "float32"))] * (name == "lq-2")
        function = kernel_functions.forward_function(
            quantizer, axes, "float32", "identity", True
        )
        result = function(tensor(values), tensor(True), *state)
        columns = values.reshape(-1, filters)
        expected = method(quantizer, columns, *(state or quantizer.fit(columns)))
        np.testing.assert_allclose(
            np.reshape(result, (-1, filters)), expected, rtol=1e-6
        )
    kernel_functions.forward_function.cache_clear()
    kernel_functions._traced_method.cache_clear()
    assert shapes == [(None, None)]
