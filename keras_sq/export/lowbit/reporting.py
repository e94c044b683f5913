"""What the report says of weights that have several forms to choose from."""

import dataclasses

from keras_sq.export.lowbit.choosing import Option
from keras_sq.export.lowbit.rewriting import matrix_bytes
from keras_sq.export.report import KernelReport
from keras_sq.export.tflite import choice


def direct_report(option: Option) -> KernelReport:
    """Returns the report of a tensor that is multiplied as it is."""
    direct = option.direct
    assert direct is not None  # As the caller made sure.
    values = direct.codes.codes
    verb = "looked up" if option.looks_up else "multiplied"
    reason = f"codes {values.min()} to {values.max()}, {verb} as they are"
    if option.windows:
        height, width = option.windows[0].kernel
        reason += f", in rows of {height} × {width} pixels"
    row = choice.reported(
        direct.weight,
        option.plan.levels,
        f"{direct.type_name} weights",
        matrix_bytes(direct),
        reason,
    )
    return with_share(row, option)


def with_share(row: KernelReport, option: Option) -> KernelReport:
    """Returns a row with the reason against a direct form, and the part of the time."""
    parts = [row.reason, option.reason if option.direct is None else ""]
    if option.share >= 0.005:
        parts.append(f"about {option.share:.0%} of the time")
    return dataclasses.replace(row, reason="; ".join(filter(None, parts)))
