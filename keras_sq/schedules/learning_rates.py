"""Learning-rate companions of the ratio schedules.

The paper trains every stage like a run of its own: the learning rate starts
again and the momentum is cleared. `StagewiseLearningRate` does the first, and
`StochasticQuantization(clear_momentum=True)` the second.

The alternative, one learning-rate schedule through all stages, needs nothing
from here: give the optimizer any `keras.optimizers.schedules` object.

References:
    - [Dong et al., 2017, section 4](https://arxiv.org/abs/1708.01001)
"""

import itertools
import numbers
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.schedules.base import MAX_STEPS, RatioSchedule


@keras.saving.register_keras_serializable(package="keras_sq")
class StagewiseLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Restarts a learning rate at the start of every stage.

        lr(step) = learning_rate(step - start of the stage that step lies in)

    The schedule restarted sees the stage's own step count only. Let it be as long
    as the longest stage; in a shorter one it is cut off. A float is the same in
    all stages.

    With `gradient_accumulation_steps=k` Keras counts batches for the learning rate
    but updates in `optimizer.iterations`, which the ratio follows: give the stages
    as `[k * start for start in schedule.stage_starts]`.

    Args:
        learning_rate: Float above 0, or a
            `keras.optimizers.schedules.LearningRateSchedule`.
        stages: A bound ratio schedule, or the steps at which the stages begin:
            increasing, the first 0. A continuous schedule has one stage.

    Call arguments:
        step: Non-negative Python int, or integer scalar tensor.

    Returns:
        Float scalar tensor.

    Raises:
        ValueError: If the ratio schedule is not bound, or the steps do not
            increase from 0.
        TypeError: If an argument is of another type.

    Example:
        >>> from keras_sq import schedules
        >>> ratio = schedules.exponential(stages=2)
        >>> ratio = ratio.bind(total_steps=200, steps_per_epoch=None)
        >>> decay = keras.optimizers.schedules.PiecewiseConstantDecay(
        ...     [50], [0.1, 0.01]
        ... )
        >>> rate = StagewiseLearningRate(decay, ratio)
        >>> [round(float(rate(step)), 3) for step in (0, 60, 99, 100, 160)]
        [0.1, 0.01, 0.01, 0.1, 0.01]
        >>> optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    """

    def __init__(
        self, learning_rate: Any, stages: RatioSchedule | Iterable[int]
    ) -> None:
        super().__init__()
        if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            self.learning_rate = learning_rate
        elif isinstance(learning_rate, numbers.Real):
            self.learning_rate = checks.positive("learning_rate", learning_rate)
        else:
            raise TypeError(
                "Argument `learning_rate` must be a number or a "
                "`keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: learning_rate={learning_rate!r}"
            )
        self.stage_starts = _starts(stages)

    def __call__(self, step: int | Tensor) -> Tensor:
        """Returns the learning rate at the step."""
        if isinstance(step, numbers.Number):
            step = checks.integer("step", step, minimum=0)
            last = max(start for start in self.stage_starts if start <= step)
        else:
            step = ops.convert_to_tensor(step)
            starts = ops.convert_to_tensor(self.stage_starts, dtype=step.dtype)
            last = ops.max(ops.where(step >= starts, starts, ops.zeros_like(starts)))
        if isinstance(self.learning_rate, float):
            return ops.convert_to_tensor(self.learning_rate, dtype="float32")
        return self.learning_rate(step - last)

    def get_config(self) -> Config:
        """Returns the arguments, JSON-serializable."""
        rate = self.learning_rate
        if not isinstance(rate, float):
            rate = keras.optimizers.schedules.serialize(rate)
        return {"learning_rate": rate, "stages": list(self.stage_starts)}

    @classmethod
    def from_config(cls, config: Config) -> "StagewiseLearningRate":
        """Makes the schedule that `get_config` describes."""
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        return cls(rate, config["stages"])


def _starts(stages: RatioSchedule | Iterable[int]) -> tuple[int, ...]:
    if isinstance(stages, RatioSchedule):
        if not stages.bound:
            raise ValueError(
                "Argument `stages` must be a bound ratio schedule: its steps are not "
                "known yet. Give what `schedule.bind(total_steps=..., "
                "steps_per_epoch=...)` returns (to the callback too), or the steps "
                f"at which the stages begin. Received: stages={stages!r}"
            )
        return stages.stage_starts
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        raise TypeError(
            "Argument `stages` must be a bound ratio schedule or the steps at which "
            f"the stages begin. Received: stages={stages!r}"
        )
    starts = tuple(
        checks.integer(f"stages[{i}]", start, 0, MAX_STEPS)
        for i, start in enumerate(stages)
    )
    if starts[:1] != (0,) or any(b <= a for a, b in itertools.pairwise(starts)):
        raise ValueError(
            "Argument `stages` must hold increasing steps, the first 0. "
            f"Received: stages={list(starts)}"
        )
    return starts
