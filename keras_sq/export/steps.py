"""The four steps of `export`: prepare, make, verify, write."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_sq import layers
from keras_sq.analysis.kernel_codes import get_codes
from keras_sq.conversion import strip
from keras_sq.core.types import Model
from keras_sq.export import missing_kernels
from keras_sq.export.activations import levels
from keras_sq.export.conversion import inputs, precision
from keras_sq.export.examples import Examples
from keras_sq.export.kinds import KINDS, Kind
from keras_sq.export.report import METADATA_NAME, ExportReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.targets import TARGETS, Writers
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.verification import output_notes, running
from keras_sq.files import atomic_files


def prepare(
    model: Model,
    kind: Kind,
    representative_data: Any,
    max_decode_bytes: int | None,
    types: tuple[str, ...],
    optimize: str = "size",
) -> Request:
    """Returns what a target makes the file from.

    Args:
        model: The user's model.
        kind: Kind of the file.
        representative_data: See `keras_sq.export`.
        max_decode_bytes: See `keras_sq.export`.
        types: Types of codes that the oldest runtime reads.
        optimize: See `keras_sq.export`.
    """
    signature, examples, notes = inputs.prepare(model, representative_data)
    if kind.single:
        signature, fixed = _with_fixed_sizes(signature, examples, kind.single)
        notes += fixed
    rounding = strip.quantized_activation(model) is not None
    quantized = bool(layers.quantized_layers(model))
    stripped = strip.plain_copy(model) if quantized or rounding else model
    plain = precision.in_float32(stripped)
    # The model itself is the better witness: it also tells of a mistake in
    # stripping. But its float16 sums are no measure for float32 ones.
    same_numbers = plain is stripped and not strip.computes_hybrid(model)
    if plain is not stripped:
        notes += ("computes in float32; the model does not",)
    return Request(
        kind=kind,
        model=plain,
        reference=model if same_numbers else plain,
        signature=signature,
        codes=get_codes(model) if quantized else {},
        types=types,
        quantizers=levels.deploy(model, plain) if rounding else (),
        examples=examples,
        max_decode_bytes=max_decode_bytes,
        optimize=optimize,
        notes=notes,
    )


def _with_fixed_sizes(
    signature: inputs.InputSignature, examples: Examples, taker: str
) -> tuple[inputs.InputSignature, tuple[str, ...]]:
    """Returns a signature without open sizes, and notes on the sizes taken."""
    notes: tuple[str, ...] = ()
    if signature.batch != 1:
        signature = signature.with_batch(1)
        notes += (f"takes one example at a time, as {taker} do",)
    if examples.arrays is None:
        return signature, notes
    fixed = signature.with_sizes(examples.arrays)
    if fixed != signature:
        notes += ("the sizes of its inputs are those of `representative_data`",)
    return fixed, notes


def make(request: Request, allow_float_kernels: bool) -> Candidate:
    """Returns the file, which is not verified yet.

    Args:
        request: What to make it from.
        allow_float_kernels: See `keras_sq.export`.

    Raises:
        ExportError: If there is no such file, or it would hold a quantized kernel
            as float32.
    """
    name = request.kind.name
    candidate = TARGETS[name].make(request)
    notes = missing_kernels.check(candidate.kernels, name, allow_float_kernels)
    converted = candidate.converted
    notes = (*converted.notes, *request.notes, *notes)
    converted = dataclasses.replace(converted, notes=notes)
    return dataclasses.replace(candidate, converted=converted)


def verify(candidate: Candidate, request: Request, path: str) -> ExportReport:
    """Returns the report of a file that computes what the model computes.

    Args:
        candidate: The file.
        request: What it was made from.
        path: Where the file will be.

    Raises:
        ExportError: If the file computes something else.
    """
    target = TARGETS[request.kind.name]
    result = target.verify(candidate, request)
    notes = output_notes.notes(result, jumps=bool(request.quantizers))
    return ExportReport(
        path=path,
        target=request.kind.name,
        num_bytes=len(candidate.converted.content),
        float_bytes=candidate.float_bytes,
        parameters=sum(int(np.prod(v.shape)) for v in request.model.weights),
        inputs=result.inputs,
        outputs=result.outputs,
        kernels=candidate.kernels,
        largest_error=result.largest_error,
        mean_error=result.mean_error,
        tolerance=result.tolerance,
        bit_exact=result.bit_exact,
        random_examples=result.random_examples,
        representative_examples=result.representative_examples,
        runtime=result.runtime,
        runtimes=candidate.runtimes,
        arena_bytes=candidate.arena_bytes,
        int8_arena_bytes=candidate.int8_arena_bytes,
        activations=levels.reports(request.quantizers, candidate.activations),
        agreeing=result.agreeing,
        output_errors=result.output_errors,
        notes=(*candidate.converted.notes, *notes),
    )


@contextlib.contextmanager
def writers(destination: pathlib.Path, kind: Kind) -> Iterator[Writers]:
    """Yields suffix -> function that writes a file; all files appear at the end.

    Args:
        destination: Path of the file.
        kind: Kind of the file.

    Raises:
        OSError: If the files cannot be written.
    """
    paths = {".tflite": destination}
    for suffix in TARGETS[kind.name].source_suffixes:
        paths[suffix] = destination.with_suffix(suffix)
    with contextlib.ExitStack() as stack:
        yield {
            suffix: stack.enter_context(atomic_files.replacing(path))
            for suffix, path in paths.items()
        }


def write(
    candidate: Candidate,
    report: ExportReport,
    destination: pathlib.Path,
    writers: Writers,
) -> ExportReport:
    """Writes a file that holds its report; returns the report with its size.

    Args:
        candidate: The verified file.
        report: Report of the file.
        destination: Path of the file, symbolic links followed.
        writers: Suffix -> function that writes the bytes, as of `writers`.

    Raises:
        ExportError: If the file with its report computes something else.
        OSError: If the files cannot be written.
    """
    file = TFLiteFile(candidate.converted.content)
    file.set_metadata(METADATA_NAME, report.to_metadata(KINDS))
    content = file.pack()
    running.check_same(candidate.converted, content, candidate.load)
    target = TARGETS[report.target]
    target.write(content, report, destination, writers)
    sources = tuple(str(destination.with_suffix(x)) for x in target.source_suffixes)
    return dataclasses.replace(report, num_bytes=len(content), sources=sources)
