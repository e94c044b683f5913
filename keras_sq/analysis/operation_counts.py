"""How many multiplications a model needs for one example, kernel by kernel.

Counted are the multiply-accumulates (MACs) of kernels, and of attention's products
of queries, keys and values. Biases, activations, pooling and normalization (which a
converter mostly folds into a kernel) count nothing. Padding counts as any pixel.

The shapes are those of a call: the model is run once, in inference, on one example of
zeros, and each layer's inputs and outputs are looked at. What depends on a size that
the model leaves open (a length of sequences, of images) is unknown, and so are layers
of classes without a rule in `operation_rules.py`, if they have more than vectors. What
a layer of one's own, or a function, multiplies without a weight (attention by hand) is
not seen.

Design note: **why a call** and not the shapes that a graph knows. There are none
inside of subclassed models, attention and other containers. Calls with symbolic
tensors would add to the model's graph, and on JAX they hide which sizes are open.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_sq.analysis.kernel_sizes import FLOAT_BITS
from keras_sq.analysis.operation_rules import (
    INNER_KERNELS,
    KEEPS_VALUES,
    PRODUCTS,
    REPEATS,
    is_unknown,
    rule_of,
)
from keras_sq.core import call_hooks, memory_bounds
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, Model
from keras_sq.layers import QuantizedActivation

OPEN_SIZES = ((64, 96), (16, 24), (4, 6))
"""What sizes that a model leaves open are tried with: a count that differs between
the two is unknown. The later pairs are for models that take no longer sequences."""


class Count(NamedTuple):
    """What one kernel costs for one example.

    Attributes:
        macs: Multiply-accumulates, `None` if unknown.
        activation_bits: Bits of what is multiplied with the kernel; of several calls
            the most.
    """

    macs: int | None
    activation_bits: int = FLOAT_BITS


Counts = dict[tuple[int, str], Count]
"""`(id of the layer, name of the weight)` -> its count. A layer that has float
weights and is in none of the tables has an unknown one under `PRODUCTS`."""


def count_operations(model: Model) -> Counts | None:
    """Returns what each kernel of a model costs for one example.

    Args:
        model: A built model. It is called, and stays as it is.

    Returns:
        The counts, or `None` if nothing is known: the sizes of the model's inputs are
        not or are beyond this machine, or it cannot be called on zeros. A kernel
        without a count is not used.
    """
    specs = internals.input_specs(model)
    if specs is None:
        return None
    if not any(None in spec.shape[1:] for spec in keras.tree.flatten(specs)):
        return _counted(model, specs, 0)
    for sizes in OPEN_SIZES:
        first, second = (_counted(model, specs, size) for size in sizes)
        if first is not None and second is not None:
            return {
                key: count if second.get(key) == count else count._replace(macs=None)
                for key, count in first.items()
            }
    return None


def _counted(model: Model, specs: Any, open_size: int) -> Counts | None:
    def zeros(spec: Any) -> Any:
        sizes = [open_size if size is None else size for size in spec.shape[1:]]
        return keras.ops.zeros((1, *sizes), spec.dtype)

    watcher = _Watcher()
    try:
        memory_bounds.check_sizes(model, 1)
        with call_hooks.calls_watched(model, watcher.called, watcher.returned):
            model(keras.tree.map_structure(zeros, specs), training=False)
    except Exception:  # What a model's own code may raise on zeros is not known.
        return None
    return watcher.counts


class _Watcher:
    """Sees the calls of layers, and counts."""

    def __init__(self) -> None:
        self.counts: Counts = {}
        # Tensors are known by their identity, so they must live until the end.
        self._kept: list[Any] = []
        self._bits: dict[int, int] = {}
        self._inside_loop = 0
        self._times = 1

    def called(self, layer: Layer, args: Sequence[Any]) -> None:
        if isinstance(layer, REPEATS):
            self._inside_loop += 1

    def returned(self, layer: Layer, args: Sequence[Any], result: Any) -> None:
        if isinstance(layer, REPEATS):
            self._inside_loop -= 1
        if self._inside_loop:
            return
        inputs = [x for x in keras.tree.flatten(args) if hasattr(x, "shape")]
        outputs = [x for x in keras.tree.flatten(result) if hasattr(x, "shape")]
        if not inputs or not outputs:
            return
        bits = self._bits.get(id(inputs[0]), FLOAT_BITS)
        if isinstance(layer, QuantizedActivation):
            self._tag(outputs[0], layer.activation_rule.num_bits)
        elif isinstance(layer, KEEPS_VALUES):
            self._tag(outputs[0], bits)
        # Taken from the tensors' sizes, where the batch has one example.
        shapes = [tuple(x.shape) for x in inputs]
        if isinstance(layer, REPEATS):
            self._count_one_step(layer, inputs[0], bits)
            return
        rule = rule_of(layer)
        if rule is not None:
            for name, macs in rule(layer, shapes, tuple(outputs[0].shape)).items():
                self._add(layer, name, macs, bits)
        elif is_unknown(layer):
            self._add(layer, PRODUCTS, None, bits)

    def _count_one_step(self, layer: Layer, sequences: Any, bits: int) -> None:
        """Calls what a layer repeats once more, and counts that for all its steps.

        How often Keras does so, and whether by `__call__`, is the backend's matter.
        """
        inner = layer.cell if isinstance(layer, keras.layers.RNN) else layer.layer
        before, self._times = self._times, self._times * sequences.shape[1]
        step = keras.ops.zeros((1, *sequences.shape[2:]), sequences.dtype)
        self._tag(step, bits)
        try:
            if isinstance(layer, keras.layers.RNN):
                inner(step, layer.get_initial_state(1))
            else:
                inner(step)
        except Exception:  # What a cell of one's own may want is not known.
            for inside in (inner, *internals.flatten_layers(inner)):
                if is_unknown(inside) or rule_of(inside) is not None:
                    self._add(inside, PRODUCTS, None, bits)
        finally:
            self._times = before

    def _tag(self, tensor: Any, bits: int) -> None:
        self._kept.append(tensor)
        self._bits[id(tensor)] = bits

    def _add(self, layer: Layer, name: str, macs: int | None, bits: int) -> None:
        """Adds what a kernel is multiplied with in a call.

        Args:
            layer: The layer.
            name: Of its kernel, or `PRODUCTS`.
            macs: Multiply-accumulates, `None` if unknown.
            bits: Of the layer's input.
        """
        seen = FLOAT_BITS
        if name != PRODUCTS and name not in INNER_KERNELS:
            rule = getattr(layer, "input_rule", None)
            seen = bits if rule is None else rule.num_bits
        old = self.counts.get((id(layer), name), Count(0, 0))
        total = None
        if macs is not None and old.macs is not None:
            total = old.macs + self._times * macs
        most = max(seen, old.activation_bits)
        self.counts[id(layer), name] = Count(total, most)


def macs_of(counts: Counts | None, layer: Layer, names: Sequence[str]) -> Count:
    """Returns the count of some weights of a layer, taken together.

    Args:
        counts: What `count_operations` returned.
        layer: The layer.
        names: Of its weights, or `PRODUCTS`.
    """
    if counts is None:
        return Count(None)
    known = [counts[id(layer), name] for name in names if (id(layer), name) in counts]
    if not known:
        return Count(0)
    if any(count.macs is None for count in known):
        return Count(None, max(count.activation_bits for count in known))
    total = sum(count.macs or 0 for count in known)
    return Count(total, max(count.activation_bits for count in known))
