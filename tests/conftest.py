"""What all tests share: a quiet TensorFlow, seeds, the names of doctests."""

import os
from collections.abc import Iterator
from typing import Any

# Before the first import of Keras or TensorFlow, which read them once.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import numpy as np
import pytest
import tensorflow as tf


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


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SharedFixtures(), "keras_sq_shared_fixtures")
    # Two CPUs for `tf.distribute.MirroredStrategy`, which can be set only
    # before TensorFlow starts. Everything else runs on the first as before.
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
