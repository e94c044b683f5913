"""Many training steps in one compiled call, with the masks drawn inside.

`fit` draws the masks between two calls of the host, once a step. A small network on
a fast card spends most of its time waiting for that. Here a `jax.lax.scan` goes over
the steps of an epoch (or a part of it), and a step is made of the very pieces that
`fit` uses, in the same order:

1. `MaskUpdate`, the update that the callback `StochasticQuantization` runs before each
   batch: ratio of the schedule, draw of the masks, clearing of the momentum;
2. Keras's own loss (`compute_loss_and_updates`) and its gradient;
3. the optimizer's `stateless_apply`; its learning-rate schedule reads `iterations`.

Several runs of one row that differ in their seed can train together: `jax.vmap` over
stacked values. What they have in common (the step, the ratio of the schedule) is not
stacked, so that a draw that is not due costs nothing there either.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import augmentation
import jax
import jax.numpy as jnp
import keras
import numpy as np
from augmentation import Images

from keras_sq.callbacks import training_clock
from keras_sq.core import keras_internals as internals
from keras_sq.layers import quantized_layers

TEST_BATCH = 500
"""Images that the network is tested on at once."""


class Sums(NamedTuple):
    """What a stretch of training adds up; of several runs, one entry for each.

    Attributes:
        loss: Float32, sum of the losses of the steps.
        correct: Int32, training examples that were classified correctly.
        finite: Bool, whether all kernels were finite.
    """

    loss: jax.Array
    correct: jax.Array
    finite: jax.Array


class Trainer:
    """Trains a compiled Keras model step by step inside compiled calls.

    Args:
        model: A model, compiled without metrics; its values stay as they are.
        callbacks: The callbacks that `fit` would get: none or one
            `StochasticQuantization`.
        epochs: Int, length of the whole run.
        steps_per_epoch: Int, steps of an epoch.
        batch_size: Int, examples of a step.
        augment: Whether training images are mirrored and shifted.
        clear_at: Steps before which the momentum is set to zero, where no callback
            does it.
        runs: Int, number of runs that train together; 0 is one that is not stacked.
    """

    def __init__(
        self,
        model: keras.Model,
        callbacks: Sequence[Any],
        *,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        augment: bool = True,
        clear_at: Sequence[int] = (),
        runs: int = 0,
    ) -> None:
        self.model = model
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.augment = augment
        self.runs = runs
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self.layers = _quantized(model)
        self._update, self._floor = _mask_update(
            model, callbacks, epochs, steps_per_epoch
        )
        self._counter = training_clock.StepCounter(model)
        # With a callback, it knows whether to.
        self._clear_at = np.asarray([] if callbacks else clear_at, "int32")
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
        )
        self.variables = [variable for group in groups for variable in group]
        self._ends = np.cumsum([len(group) for group in groups])[:-1].tolist()
        self._metrics = [np.array(x.value) for x in model.metrics_variables]
        # The same for all runs that train together.
        self._shared = {id(x) for x in (*self._counter.variables, *self._ratios())}
        axes = [None if id(x) in self._shared else 0 for x in self.variables]
        chunk, test = self._chunk, self._test
        if runs:
            data = Images(*[None] * len(Images._fields))
            chunk = lambda length, values, *rest: jax.vmap(  # noqa: E731
                functools.partial(self._chunk, length),
                in_axes=(axes, data, 0, None, None),
                out_axes=(axes, 0),
            )(values, *rest)
            test = jax.vmap(self._test, in_axes=(axes, data), out_axes=0)
        self._jitted = jax.jit(chunk, static_argnums=0, donate_argnums=1)
        self._compiled: dict[int, Any] = {}
        self._jitted_test = jax.jit(test)
        self._compiled_test: Any = None

    # Values.

    def values(self) -> list[np.ndarray]:
        """Returns the values of the model and its optimizer, as they are now."""
        return [np.array(variable.value) for variable in self.variables]

    def put(self, values: Sequence[np.ndarray]) -> None:
        """Gives the model and its optimizer these values."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def stack(self, runs: Sequence[Sequence[np.ndarray]]) -> list[Any]:
        """Returns the values of several runs as one list, to be trained together."""
        if not self.runs:
            (values,) = runs
            return [jnp.array(value) for value in values]
        return [
            jnp.array(these[0] if id(variable) in self._shared else np.stack(these))
            for variable, these in zip(
                self.variables, zip(*runs, strict=True), strict=True
            )
        ]

    def unstack(self, values: Sequence[jax.Array]) -> list[list[np.ndarray]]:
        """Returns the values of each run."""
        arrays = [np.array(value) for value in values]
        if not self.runs:
            return [arrays]
        return [
            [
                array if id(variable) in self._shared else array[run]
                for variable, array in zip(self.variables, arrays, strict=True)
            ]
            for run in range(self.runs)
        ]

    def ratio(self, values: Sequence[Any]) -> float | None:
        """Returns the part of the quantized layers' weights that is quantized.

        As `StochasticQuantization` logs it; `None` for a float network.

        Args:
            values: Values of one run, or of several.
        """
        if not self.layers:
            return None
        place = {id(variable): i for i, variable in enumerate(self.variables)}
        ratios = [float(np.ravel(values[place[id(x)]])[0]) for x in self._ratios()]
        sizes = [
            sum(int(np.prod(x.latent(name).shape)) for name in x.quantized_weights)
            for x in self.layers
        ]
        return float(np.average(ratios, weights=sizes))

    def _ratios(self) -> list[Any]:
        return [layer.ratio for layer in self.layers]

    # Calls.

    def train(
        self,
        values: list[Any],
        data: Images,
        seeds: Any,
        epoch: int,
        first: int,
        length: int,
    ) -> tuple[list[Any], Sums]:
        """Trains some steps of an epoch.

        Args:
            values: As from `stack`; they are used up.
            data: The images.
            seeds: The run's seed; of several, a list.
            epoch: Int, from 0.
            first: Int, first step in the epoch, from 0.
            length: Int, number of steps. For each number there is a program.

        Returns:
            New values, and the sums of these steps.
        """
        self.compile(length, values, data, seeds)
        numbers = np.asarray(seeds, "int32"), np.int32(epoch), np.int32(first)
        values, sums = self._compiled[length](values, data, *numbers)
        return values, sums

    def compile(self, length: int, values: list[Any], data: Images, seeds: Any) -> None:
        """Compiles what `train` calls, once for each length; trains nothing."""
        if length not in self._compiled:
            numbers = np.asarray(seeds, "int32"), np.int32(0), np.int32(0)
            lowered = self._jitted.lower(length, values, data, *numbers)
            self._compiled[length] = lowered.compile()

    def test(self, values: Sequence[Any], data: Images) -> np.ndarray:
        """Returns the test accuracy of the network as it will be deployed, percent.

        Everything is quantized, whatever the masks say.

        Args:
            values: As from `stack`.
            data: The images.
        """
        self.compile_test(list(values), data)
        correct = np.asarray(self._compiled_test(list(values), data))
        return np.float64(100.0) * correct / len(data.test)

    def compile_test(self, values: list[Any], data: Images) -> None:
        """Compiles what `test` calls, once."""
        if self._compiled_test is None:
            self._compiled_test = self._jitted_test.lower(values, data).compile()

    # What is compiled.

    def _chunk(
        self,
        length: int,
        values: list[Any],
        data: Images,
        seed: jax.Array,
        epoch: jax.Array,
        first: jax.Array,
    ) -> tuple[list[Any], Sums]:
        order = augmentation.epoch_order(seed, epoch, len(data.train))

        def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
            values, sums = carry
            here = number * self.batch_size
            index = jax.lax.dynamic_slice_in_dim(order, here, self.batch_size)
            images = augmentation.standardize(data.train[index], data)
            if self.augment:
                images = augmentation.mirror_and_shift(images, seed, epoch, number)
            values, new = self._step(values, images, data.train_labels[index])
            sums = Sums(
                sums.loss + new.loss,
                sums.correct + new.correct,
                sums.finite & new.finite,
            )
            return (values, sums), None

        zero = Sums(jnp.zeros(()), jnp.zeros((), "int32"), jnp.ones((), "bool"))
        if length == 1:
            # XLA computes convolutions in a loop many times slower on a CPU.
            (values, sums), _ = step((values, zero), first)
            return values, sums
        numbers = first + jnp.arange(length, dtype="int32")
        (values, sums), _ = jax.lax.scan(step, (values, zero), numbers)
        return values, sums

    def _step(
        self, values: list[Any], images: jax.Array, labels: jax.Array
    ) -> tuple[list[Any], Sums]:
        """Trains on a batch, as `fit` with the callback does."""
        finite = jnp.ones((), "bool")
        if self._update is not None:
            values, finite = self._redraw(values)
        if self._clear_at.size:
            values = self._cleared(values)
        trainable, others, optimizer = self._split(values)
        differentiate = jax.value_and_grad(
            self.model.compute_loss_and_updates, has_aux=True
        )
        (_, (loss, logits, others, _)), gradients = differentiate(
            trainable,
            others,
            self._metrics,
            images,
            labels,
            None,
            training=True,
            optimizer_variables=optimizer,
        )
        trainable, optimizer = self.model.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype="int32")
        sums = Sums(loss.astype("float32"), correct, finite & jnp.isfinite(loss))
        return [*trainable, *others, *optimizer], sums

    def _redraw(self, values: list[Any]) -> tuple[list[Any], jax.Array]:
        """Goes on to the next batch, as the callback does before each."""
        pairs = list(zip(self.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            # The optimizer steps once a batch, so its counter alone is the clock.
            clock = training_clock.Reading(
                self._counter.applied(), np.float32(0), np.int32(0)
            )
            news = np.int32(0), np.int32(0)
            state = self._update(np.int32(1), clock, news, self._floor)
            after = [scope.get_current_value(variable) for variable in self.variables]
        return after, jnp.all(state.finite)

    def _cleared(self, values: list[Any]) -> list[Any]:
        """Sets the momentum to zero where a part of the training begins."""
        slots = {id(x) for x in internals.optimizer_slots(self.model.optimizer)}
        place = [x is self.model.optimizer.iterations for x in self.variables]
        step = values[place.index(True)]
        begins = (step > 0) & jnp.any(step == self._clear_at)
        return [
            jnp.where(begins, jnp.zeros_like(value), value)
            if id(variable) in slots
            else value
            for variable, value in zip(self.variables, values, strict=True)
        ]

    def _test(self, values: list[Any], data: Images) -> jax.Array:
        trainable, others, _ = self._split(values)
        examples = len(data.test)
        batches = -(-examples // TEST_BATCH)

        def correct(batch: jax.Array) -> jax.Array:
            index = batch * TEST_BATCH + jnp.arange(TEST_BATCH)
            there = index < examples
            index = jnp.minimum(index, examples - 1)
            images = augmentation.standardize(data.test[index], data)
            logits, _ = self.model.stateless_call(
                trainable, others, images, training=False
            )
            right = jnp.argmax(logits, -1) == data.test_labels[index]
            return jnp.sum(right & there, dtype="int32")

        return jnp.sum(jax.lax.map(correct, jnp.arange(batches)))

    def _split(self, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        first, second = self._ends
        return list(values[:first]), list(values[first:second]), list(values[second:])


def _quantized(model: keras.Model) -> list[Any]:
    return [layer for _, layer in quantized_layers(model)]


def _mask_update(
    model: keras.Model, callbacks: Sequence[Any], epochs: int, steps_per_epoch: int
) -> tuple[Any, Any]:
    """Returns what the callback would call before each batch, and its floor.

    The callback binds its schedule to the run, checks the kernels and makes the
    update itself; it is then taken from where it keeps it for the next `fit`.
    """
    if not callbacks:
        return None, None
    (callback,) = callbacks
    callback.set_model(model)
    callback.set_params({"epochs": epochs, "steps": steps_per_epoch})
    with warnings.catch_warnings():
        # Of rehearsals that are too short for every stage.
        warnings.simplefilter("ignore", UserWarning)
        callback.on_train_begin()
    floor = np.zeros(callback.bound_schedule(0).shape, "float32")
    return training_clock.progress_of(model).update, floor
