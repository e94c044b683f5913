"""Takes task models of keras-hub all the way: quantized, trained, saved, exported, run.

    python tests/checks/keras_hub_models.py --environment=~/.cache/keras_sq_keras_hub

Makes a virtual environment with this package, keras-hub and what it imports (of a
package index; tensorflow-text and the presets' downloads are not needed), and takes
BERT and ViT classifiers and GPT-2 of small configurations through all steps: each is
quantized to ternary kernels, fitted a few steps, saved, loaded and stripped, and
exported for targets "small" and "int8"; each file is run on fresh inputs and compared
with Keras. Prints a table; the exit status is 1 if a step fails.

Needs some minutes and 3 GB of disk; with `--environment` the next run starts at once.
`--plain` takes the same networks as plain functional models. Not part of the suite.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
TOLERANCES = {"small": 1e-4, "int8": 0.25}
"""Of the root mean square of the outputs, on fresh inputs."""

WORDS, LENGTH, EXAMPLES = 60, 32, 32


# Here: the environment.


def environment(folder):
    """Returns the Python of a virtual environment with keras-hub in it."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "done"
    if not done.exists():
        print("Installing ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-e", str(ROOT)], check=True)
        subprocess.run([*install, "--no-deps", "keras-hub"], check=True)
        needed = ["tokenizers", "regex", "rich", "packaging", "ai-edge-litert"]
        subprocess.run([*install, *needed], check=True)
        done.touch()
    return python


# There: networks, steps, table.


def tokens(generator, names):
    """Returns inputs of text: every other example is padded."""
    made = {"token_ids": generator.integers(0, WORDS, (EXAMPLES, LENGTH))}
    made["padding_mask"] = generator.integers(0, 1, (EXAMPLES, LENGTH)) + 1
    made["padding_mask"][::2, LENGTH // 2 :] = 0
    made["segment_ids"] = 0 * made["token_ids"]
    return {name: made[name].astype("int32") for name in names}


def bert():
    """A classifier of text."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=WORDS,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=64,
    )
    return keras_hub.models.BertTextClassifier(backbone, 3, preprocessor=None)


def gpt2():
    """A decoder of text, whose outputs are for each token."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=WORDS,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=64,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def vit():
    """A classifier of images."""
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
    )
    return keras_hub.models.ViTImageClassifier(backbone, 3, preprocessor=None)


NETWORKS = {"bert": bert, "gpt2": gpt2, "vit": vit}


def inputs_of(model, generator):
    """Returns examples of what a model takes, as Keras and as `export` want them."""
    if isinstance(model.input, dict):
        return tokens(generator, list(model.input))
    shape = (EXAMPLES, *model.input.shape[1:])
    return generator.normal(size=shape).astype("float32")


def fitted(model, x):
    """Returns a model quantized to ternary kernels and trained for a few steps."""
    import keras
    import numpy as np

    import keras_sq

    sq_model = keras_sq.quantize_model(model, "ternary", seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sq_model.compile(optimizer="adam", loss=loss)
    y = np.zeros(np.shape(sq_model.predict(x, verbose=0))[:-1], "int32")
    schedule = keras_sq.callbacks.StochasticQuantization()
    sq_model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[schedule])
    return sq_model


def saved_and_loaded(model, folder):
    """Returns a model as it comes out of its file."""
    import keras

    path = folder / "model.keras"
    model.save(path)
    return keras.models.load_model(path, compile=False)


def difference(model, path, x):
    """Returns how far a file is from Keras, relative to the outputs' size."""
    import keras
    import numpy as np

    from keras_sq.export.tflite import runtime

    runner = runtime.Runner(path.read_bytes())
    batch = x if isinstance(x, dict) else {next(iter(runner.inputs)): x}
    made = runner({name: runner.quantized(name, v) for name, v in batch.items()})
    (name,) = made
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    error = runner.dequantized(name, made[name]) - expected
    return float(np.sqrt(np.square(error).mean() / np.square(expected).mean()))


def take(name, plain, folder):
    """Takes a network through all steps; yields a row of the table for each."""
    import keras
    import numpy as np

    import keras_sq

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = NETWORKS[name]()
    if plain:
        inputs = model.input if isinstance(model.input, dict) else model.inputs[0]
        model = keras.Model(inputs, model.output, name=name)
    x = inputs_of(model, generator)
    fresh = inputs_of(model, generator)
    steps = {
        "train": lambda: fitted(model, x),
        "save and load": lambda: saved_and_loaded(made["train"], folder),
        "strip": lambda: keras_sq.strip_quantization(made["save and load"]),
    }
    made = {}
    for step, work in steps.items():
        start = time.perf_counter()
        try:
            made[step] = work()
        except Exception as error:
            yield step, time.perf_counter() - start, str(error)[:300], False
            return
        text, fine = "", True
        if step != "train":
            outputs = [np.asarray(m.predict(fresh, verbose=0)) for m in made.values()]
            error = np.abs(outputs[-1] - outputs[0]).max()
            text, fine = f"differs by {error:.2g}", bool(error < 1e-5)
        yield step, time.perf_counter() - start, text, fine
    for target, tolerance in TOLERANCES.items():
        start = time.perf_counter()
        path = folder / f"{target}.tflite"
        data = {"representative_data": x} if target == "int8" else {}
        try:
            report = keras_sq.export(made["train"], path, target=target, **data)
            found = difference(made["train"], path, fresh)
        except Exception as error:
            yield target, time.perf_counter() - start, str(error)[:300], False
            continue
        notes = "".join(f"; {note}" for note in report.notes)
        text = f"{report.num_bytes:,} bytes, differs by {found:.2g}{notes}"
        yield target, time.perf_counter() - start, text, found < tolerance


def table(names, plain):
    """Prints what came of each step; returns whether all were right."""
    fine = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for step, seconds, text, right in take(name, plain, pathlib.Path(folder)):
                fine &= right
                mark = "ok" if right else "FAILED"
                text = " ".join(text.split())
                print(
                    f"{name:5} {step:14} {mark:6} {seconds:4.0f} s  {text}", flush=True
                )
    return fine


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--environment", help="Folder to keep the environment in.")
    parser.add_argument("--plain", action="store_true", help="As functional models.")
    parser.add_argument("--here", action="store_true", help="This Python has it all.")
    options = parser.parse_args()
    if options.here:
        return 0 if table(options.networks, options.plain) else 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.environment or temporary).expanduser()
        python = environment(folder)
        again = [str(python), __file__, "--here", *options.networks]
        again += ["--plain"] * options.plain
        settings = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.run(again, env=os.environ | settings).returncode


if __name__ == "__main__":
    sys.exit(main())
