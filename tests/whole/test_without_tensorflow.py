"""On JAX the training path works where TensorFlow and TFDS are not installed."""

import os
import pathlib
import subprocess
import sys
import textwrap

from hiding import TENSORFLOW, hide

ROOT = pathlib.Path(__file__).parents[2]


def run_on_jax(folder, code):
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([hide(folder, TENSORFLOW), str(ROOT)]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_quantized_model_trains_without_tensorflow(tmp_path):
    result = run_on_jax(
        tmp_path,
        """
        import sys

        import keras
        import numpy as np

        import keras_sq

        random = np.random.default_rng(0)
        x = random.normal(size=(64, 8, 8, 3)).astype("float32")
        y = (x[:, 0, 0, 0] > 0).astype("int32")
        model = keras.Sequential([
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ])
        quantized = keras_sq.quantize_model(model, "ternary", overrides={})
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        quantized.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
        callback = keras_sq.callbacks.StochasticQuantization()
        history = quantized.fit(
            x, y, batch_size=16, epochs=4, verbose=0, callbacks=[callback]
        )
        assert history.history["loss"][-1] < history.history["loss"][0]
        assert keras_sq.get_ratio(quantized) == 1.0
        expected = quantized.predict(x, verbose=0)
        for codes in keras_sq.get_codes(quantized).values():
            assert set(np.unique(codes.codes)) <= {-1, 0, 1}
        keras_sq.summary(quantized)

        quantized.save("model.keras")
        loaded = keras.saving.load_model("model.keras")
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
        assert keras_sq.models.NETWORKS
        assert not any(name.startswith("tensorflow") for name in sys.modules)
        print("done")
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("done\n")


def test_data_sets_name_the_package_that_is_missing(tmp_path):
    # As a check of the hiding too: what needs TensorFlow does not work.
    result = run_on_jax(tmp_path, "import keras_sq; keras_sq.datasets.load()")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'tensorflow'"
