"""What all tests share: a quiet backend, seeds, the names of doctests.

The suite runs on Keras's TensorFlow backend. With `KERAS_BACKEND=jax` its tests
of the training path run on JAX: what needs TensorFlow is left out, and pytest's
header and summary say so.
"""

import functools
import gc
import os
import pathlib
from collections.abc import Iterator
from typing import Any

# Before the first import of Keras, TensorFlow or JAX, which read them once.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ["KERAS_BACKEND"] == "jax":
    # Each operation is compiled for each shape that it meets, and compiling takes
    # longer than the small tests' arithmetic.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

if BACKEND not in ("tensorflow", "jax"):
    raise pytest.UsageError(
        "The tests run on the TensorFlow and JAX backends of Keras. Received: "
        f"KERAS_BACKEND={BACKEND!r}"
    )

TENSORFLOW_FILES = (
    "datasets",
    "experiments/test_train.py",
    "export",
    "files/test_damaged_files.py",
    "project/test_docs.py",
    "project/test_notebooks.py",
    "project/test_packaging.py",
    "project/test_readme.py",
)
"""Export, TFDS, and what uses both."""

collect_ignore = [] if BACKEND == "tensorflow" else list(TENSORFLOW_FILES)
# Commands: two of them cannot be imported into one process, because of their flags,
# and some import packages that the tests do not need.
collect_ignore += ["benchmarks", "checks", "support"]


class SharedFixtures:
    """Fixtures for the doctests in `keras_sq/` too.

    Those of a conftest.py reach the tests beneath its directory only, so these
    are registered as a plugin.
    """

    @pytest.fixture(autouse=True)
    def _same_start(self) -> Iterator[None]:
        """Seeds everything, and keeps a changed dtype policy in its test."""
        policy = keras.config.dtype_policy()
        keras.utils.set_random_seed(0)
        yield
        keras.config.set_dtype_policy(policy)

    @pytest.fixture(autouse=True)
    def _doctest_names(self, doctest_namespace: dict[str, Any]) -> None:
        import keras_sq

        doctest_namespace.update(keras=keras, keras_sq=keras_sq, np=np)


class WithoutTensorFlow:
    """Leaves out what needs the TensorFlow backend, and says what and how much."""

    def __init__(self) -> None:
        self.left_out = 0

    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> None:
        # Thousands of compiled operations take gigabytes of memory.
        if nextitem is None or nextitem.path != item.path:
            import jax

            jax.clear_caches()

    def pytest_report_header(self) -> str:
        return (
            f"backend: {BACKEND}; left out, as they need TensorFlow: the package's "
            "doctests, tests marked `tensorflow`, " + ", ".join(TENSORFLOW_FILES)
        )

    def pytest_ignore_collect(self, collection_path: pathlib.Path) -> bool | None:
        # The doctests show tensors by `.numpy()`, which JAX's arrays lack.
        package = pathlib.Path(__file__).parents[1] / "keras_sq"
        return True if collection_path.is_relative_to(package) else None

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        out = [item for item in items if item.get_closest_marker("tensorflow")]
        items[:] = [item for item in items if item not in set(out)]
        config.hook.pytest_deselected(items=out)
        self.left_out = len(out)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # With pytest-xdist, each worker collects all tests, and only they do.
        self.left_out = getattr(node, "workeroutput", {}).get("left_out", 0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["left_out"] = self.left_out

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(
            f"{self.left_out} tests marked `tensorflow` were left out, beside the "
            f"package's doctests and {', '.join(TENSORFLOW_FILES)}: run them with "
            "KERAS_BACKEND=tensorflow."
        )


def make_metrics_before_the_step() -> None:
    """Lets TensorFlow trace a model's step once, not twice.

    Keras makes the variables of its metrics in the first step, and TensorFlow traces
    a function again in which variables were made. Most of a short training is this.
    """
    from keras.src.trainers.compile_utils import CompileMetrics

    from keras_sq.core import backend

    build = CompileMetrics.build

    @functools.wraps(build)
    def outside(self: Any, *arguments: Any) -> None:
        with backend.outside_of_graphs():
            build(self, *arguments)

    CompileMetrics.build = outside


def pytest_collection_finish() -> None:
    # What was imported stays; the garbage collector need not look at it again. Nor so
    # often: a graph is a hundred thousand objects, and each time all are looked at.
    gc.freeze()
    gc.set_threshold(7_000, 10, 10)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SharedFixtures(), "keras_sq_shared_fixtures")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        make_metrics_before_the_step()
        # Two CPUs for `tf.distribute.MirroredStrategy`, which can be set only
        # before TensorFlow starts. Everything else runs on the first as before.
        (cpu,) = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device, device])
        return
    import jax

    # What was compiled once need not be again, in any process.
    cache = config.cache
    assert cache is not None
    for name, value in {
        "jax_compilation_cache_dir": str(cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }.items():
        jax.config.update(name, value)
        os.environ.setdefault(name.upper(), str(value))
    config.pluginmanager.register(WithoutTensorFlow(), "keras_sq_without_tensorflow")
