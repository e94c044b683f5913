"""The warnings about a run that does not go through its schedule, with remedies.

This module makes the texts from numbers; `stochastic.py` decides when to warn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_sq.core import checks
from keras_sq.schedules.base import RatioSchedule

MOST_SAMPLES = 1000
"""Most steps at which a schedule is evaluated."""


class Ending(NamedTuple):
    """How a run ended.

    Attributes:
        ratio: Least ratio of a layer in the last step that was trained.
        final_ratio: That the schedule ends with.
        step: Steps done.
        end_step: The step from which the schedule has its last ratio.
        stopped: Whether a callback stopped the run (`model.stop_training`).
        skipped: Steps of the run that loss scaling skipped.
        total_steps: The callback's argument.
        end_epoch: The first epoch, from 0, that begins at `end_step` or behind it, if
            known.
    """

    ratio: float
    final_ratio: float
    step: int
    end_step: int
    stopped: bool
    skipped: int
    total_steps: int | None
    end_epoch: int | None


def of_partial_end(ending: Ending) -> str:
    """Returns the warning of a run that ended at a ratio below 1."""
    reason, remedy = _reason(ending)
    rest = "To quantize the rest without training: `keras_sq.set_ratio(model, 1.0)`."
    if ending.final_ratio >= 1.0 and ending.step >= ending.end_step:
        rest = "The rest has been quantized without training."
    return (
        f"Training ended at ratio {ending.ratio:.4g}: {reason} What would be exported "
        f"was never trained fully quantized. {remedy} {rest}"
    )


def _reason(ending: Ending) -> tuple[str, str]:
    step, end = ending.step, ending.end_step
    if ending.final_ratio < 1.0:
        return (
            f"the schedule ends at ratio {ending.final_ratio:g}.",
            "Add a last stage of ratio 1, or give the schedule `allow_partial=True` if "
            "this is meant.",
        )
    if step >= end:
        return (
            f"the schedule quantizes everything at step {end}, and all {step} steps "
            "of the run had begun before.",
            "Train longer, or with fewer `steps_per_execution`.",
        )
    if ending.stopped:
        by_keras = ""
        if ending.end_epoch is not None:
            by_keras = f" (or `EarlyStopping(start_from_epoch={ending.end_epoch})`)"
        return (
            f"it was stopped at step {step}, and the schedule quantizes everything at "
            f"step {end}.",
            "Make the callback that stops wait until then: "
            "`keras_sq.callbacks.OnceQuantized(keras.callbacks.EarlyStopping(...))`"
            f"{by_keras}.",
        )
    if step + ending.skipped >= end:
        return (
            f"loss scaling skipped {ending.skipped} steps, whose gradients were not "
            f"finite, so that the run ended at step {step}, and the schedule quantizes "
            f"everything at step {end}.",
            "Train longer, or compile with a `keras.optimizers.LossScaleOptimizer` of "
            "a lower `initial_scale`.",
        )
    if ending.total_steps is not None:
        return (
            f"of total_steps={ending.total_steps} only {step} are done, and the "
            f"schedule quantizes everything at step {end}.",
            "Go on with `fit` and the same compiled model, or give `total_steps` the "
            "steps of the whole training.",
        )
    return (
        f"the run ended at step {step}, and the schedule quantizes everything at step "
        f"{end}.",
        "Train longer, or shorten the schedule (its lengths, or `ramp`).",
    )


def of_frozen_layers(paths: Sequence[str]) -> str:
    """Returns the warning of quantized layers whose kernels do not learn.

    Args:
        paths: Of the layers.
    """
    return (
        f"Layers {checks.listed(paths)} are quantized and frozen (`trainable=False`): "
        "their kernels get few bits without being trained for it, which costs "
        "accuracy. Set `trainable=True` and compile again, or leave them float: "
        "`keras_sq.quantize_model(model, skip=[...])`."
    )


def of_ended_schedule(end_step: int, step: int) -> str:
    """Returns the warning of a `fit` that finds everything quantized already."""
    return (
        f"The schedule ended at step {end_step}, and the optimizer is at step {step} "
        "already: everything stays quantized in this run. To go through the schedule "
        "again, compile the model again. If `fit` is called once an epoch or once a "
        "step, give the callback the steps of all calls together: "
        "`StochasticQuantization(total_steps=...)`."
    )


def of_masks_not_drawn(schedule: RatioSchedule, resample_every: int) -> str | None:
    """Returns the warning of a ramp that lies between two draws of the masks.

    Args:
        schedule: A bound schedule.
        resample_every: Steps between two draws.

    Returns:
        `None` if masks are drawn at a ratio between 0 and 1, or there is no such.
    """
    end = schedule.end_step
    if resample_every == 1 or not end:
        return None
    draws = {*range(0, end, resample_every), *schedule.stage_starts}
    steps = np.linspace(0, end - 1, min(end, MOST_SAMPLES)).astype("int32")
    drawn = np.array(sorted(step for step in draws if step < end)[:MOST_SAMPLES])
    if not _partial(schedule, steps) or _partial(schedule, drawn):
        return None
    return (
        f"The masks are drawn every {resample_every} steps, and the ratio grows to "
        f"{schedule.final_ratio:g} within {end}: nothing would be quantized before, "
        "and everything at once then. Give `resample_every` a smaller number."
    )


def _partial(schedule: RatioSchedule, steps: np.ndarray) -> bool:
    ratios = ops.convert_to_numpy(schedule(steps.astype("int32")))
    return bool(np.any((ratios > 0) & (ratios < 1)))
