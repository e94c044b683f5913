"""What the fused functions of a large kernel compute, and what they allocate."""

import re

import numpy as np
import pytest
from backends import tensor

from keras_sq.core import backend
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
    assert ROWS * FILTERS >= backend.FUSED_MIN_SIZE
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
    monkeypatch.setattr(backend, "_xla_works", lambda: False)
    np.testing.assert_allclose(function(kernel(), mask()), expected, rtol=1e-6)
