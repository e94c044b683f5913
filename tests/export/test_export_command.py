"""The command line of the export."""

import contextlib
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest
from absl import flags
from keras import layers as kl

import keras_sq
from keras_sq.analysis.operation_counts import count_operations
from keras_sq.core import memory_bounds
from keras_sq.export import __main__ as command
from keras_sq.export import kinds
from keras_sq.export.inspection import reader

DATA = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    plain = keras.Sequential(
        [
            keras.Input((6,), name="features"),
            kl.Dense(50, activation="relu", name="hidden"),
            kl.Dense(40, name="logits"),
        ],
        name="small",
    )
    return keras_sq.quantize_model(plain, "binary", seed=0, overrides={})


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "model.keras")
    model.save(path)
    return path


def run(*arguments):
    """Returns exit status, standard output and standard error."""
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["export", *map(str, arguments)])[1:]
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        status = command.main(values, rest)
    return status, output.getvalue(), error.getvalue()


def refused(*arguments, status=1):
    """Returns the one line that says why nothing was done."""
    actual, output, error = run(*arguments)
    assert (actual, output) == (status, "")
    assert error.startswith("keras_sq.export: error: ")
    assert error.count("\n") == 1
    return error.removeprefix("keras_sq.export: error: ").rstrip()


@pytest.mark.parametrize("target", [x for x, y in kinds.KINDS.items() if not y.single])
def test_command_does_what_the_function_does(target, model, saved, tmp_path):
    data = tmp_path / "data.npy"
    np.save(data, DATA)
    path, other = tmp_path / "command.tflite", tmp_path / "function.tflite"
    status, output, error = run(
        saved, path, f"--target={target}", f"--representative={data}"
    )
    assert (status, error) == (0, "")
    report = keras_sq.export(
        keras.models.load_model(saved, compile=False),
        other,
        target=target,
        representative_data=DATA,
    )
    assert path.read_bytes() == other.read_bytes()
    assert output == str(report).replace("function.tflite", "command.tflite") + "\n"


def test_command_prints_json(saved, tmp_path):
    path = tmp_path / "model.tflite"
    status, output, _ = run(saved, path, "--json")
    content = json.loads(output)
    assert status == 0
    assert content["path"] == str(path)
    assert content["num_bytes"] == path.stat().st_size


@pytest.mark.parametrize("name", ["features", "anything", "arr_0"])
def test_one_array_may_have_any_name(name, saved, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, **{name: DATA})
    status, output, _ = run(
        saved, tmp_path / "x.tflite", f"--representative={data}", "--json"
    )
    assert status == 0
    assert json.loads(output)["representative_examples"] == len(DATA)


def test_several_arrays_go_by_name(tmp_path):
    a, b = keras.Input((4,), name="alpha"), keras.Input((5,), name="beta")
    path = tmp_path / "two.keras"
    keras.Model([a, b], kl.Dense(2)(kl.Concatenate()([a, b]))).save(path)
    data = tmp_path / "data.npz"
    np.savez(data, beta=np.ones((3, 5)), alpha=np.ones((3, 4)))
    arguments = (path, tmp_path / "x.tflite", f"--representative={data}")
    assert run(*arguments)[0] == 0
    np.savez(data, beta=np.ones((3, 5)), gamma=np.ones((3, 4)))
    assert "Received: the keys ['beta', 'gamma']" in refused(*arguments)
    np.savez(data, beta=np.ones((3, 5)))
    assert "one array for each input" in refused(*arguments)


def test_error_about_thousands_of_arrays_is_short(saved, tmp_path):
    data = tmp_path / "data.npz"
    with zipfile.ZipFile(data, "w") as archive:
        content = io.BytesIO()
        np.save(content, np.ones(1))
        for index in range(2000):
            archive.writestr(f"array_{index}.npy", content.getvalue())
    message = refused(saved, tmp_path / "x.tflite", f"--representative={data}")
    assert message.endswith("and 1,960 more].")
    assert len(message) < 1500


@pytest.mark.parametrize(
    "size", [(60_000, 60_000, 1), (4096, 4096, 3)], ids=["absurd", "large"]
)
def test_absurd_inputs_are_refused_and_large_ones_are_not(size, tmp_path, monkeypatch):
    # As on a machine of 4 GiB, whichever runs the test.
    monkeypatch.setattr(memory_bounds, "memory_bytes", lambda: 2**32)
    x = keras.Input(size, name="image")
    pooled = kl.GlobalAveragePooling2D()(kl.AveragePooling2D(512)(x))
    small = keras.Model(x, kl.Dense(2)(pooled))
    wide = kl.UpSampling2D(4096)(y := keras.Input((size[0] // 4096, 1, size[2])))
    inner = keras.Model(y, kl.GlobalMaxPooling2D()(wide))
    hidden = keras.Sequential([keras.Input(inner.input_shape[1:]), inner])
    for model in (small, hidden) if size[0] > 4096 else ():
        path = tmp_path / "model.keras"
        model.save(path)
        tracemalloc.start()
        message = refused(path, tmp_path / "x.tflite")
        assert tracemalloc.get_traced_memory()[1] < 2**28
        tracemalloc.stop()
        assert "is too large to be run here: tensor '" in message
        assert "this machine has 4 GiB" in message
        # Nothing is known of it, and it is not tried.
        assert count_operations(model) is None
    if size[0] == 4096:
        memory_bounds.check_sizes(small, 3)
        memory_bounds.check_sizes(hidden, 3)


def write_pickle(path):
    with open(path, "wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)


def write_truncated(path):
    np.savez_compressed(path, x=np.ones(1000))
    path.write_bytes(path.read_bytes()[:-100])


def write_cut_array(path):
    np.save(path, np.ones(1000))
    path.with_suffix(".npz.npy").replace(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b""), "no .npz or .npy file of numbers"),
        (lambda path: path.write_text("1, 2"), "no .npz or .npy file of numbers"),
        (write_pickle, "allow_pickle=False"),
        (write_truncated, "no .npz or .npy file of numbers"),
        (write_cut_array, "no .npz or .npy file of numbers"),
        (lambda path: np.savez(path), "holds no array"),
        (lambda path: np.savez(path, x=np.ones((3, 7))), "must have the shape"),
        (lambda path: np.savez(path, x=np.full((3, 6), np.nan)), "must be finite"),
        (lambda path: np.savez(path, x=np.full((3, 6), "a")), "must hold numbers"),
    ],
)
def test_wrong_examples_are_refused(write, message, saved, tmp_path):
    data = tmp_path / "data.npz"
    write(data)
    path = tmp_path / "x.tflite"
    assert message in refused(saved, path, f"--representative={data}")
    assert not path.exists()


def test_missing_examples_are_named(saved, tmp_path):
    message = refused(saved, tmp_path / "x.tflite", "--target=int8")
    assert "representative_data" in message


def test_model_trained_part_of_the_way_needs_a_flag(model, tmp_path):
    part = keras.models.clone_model(model)
    keras_sq.set_ratio(part, 0.5)
    path = tmp_path / "part.keras"
    part.save(path)
    arguments = (path, tmp_path / "x.tflite")
    assert "the least ratio of its quantized layers is 0.5" in refused(*arguments)
    assert run(*arguments, "--allow_partial", "--allow_untrained")[0] == 0


def test_custom_layers_come_from_the_users_module(tmp_path, monkeypatch):
    source = """
import keras

@keras.saving.register_keras_serializable("export_command")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""
    (tmp_path / "doubled_layers.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import doubled_layers

    path = tmp_path / "model.keras"
    layers = [keras.Input((3,)), doubled_layers.Doubled(), kl.Dense(2)]
    keras.Sequential(layers).save(path)
    objects = keras.saving.get_custom_objects()
    monkeypatch.delitem(objects, "export_command>Doubled")
    monkeypatch.delitem(sys.modules, "doubled_layers")
    message = refused(path, tmp_path / "x.tflite")
    assert message.startswith(f"Model '{path}' cannot be loaded: Could not locate")
    assert message.endswith("--import=my_layers.")
    status, _, error = run(path, tmp_path / "x.tflite", "--import=doubled_layers")
    assert (status, error) == (0, "")
    objects.pop("export_command>Doubled")
    sys.modules.pop("doubled_layers")


@pytest.mark.parametrize("name", ["no_such_module", "no_such.module", "keras_sq.none"])
def test_unknown_module_is_named(name, saved, tmp_path):
    message = refused(saved, tmp_path / "x.tflite", f"--import={name}")
    assert f"There is no module '{name}' to import" in message


def test_module_that_lacks_another_says_which(saved, tmp_path, monkeypatch):
    (tmp_path / "lacking_layers.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(saved, tmp_path / "x.tflite", "--import=lacking_layers")
    assert message == "No module named 'no_such_module'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no model '"),
        (b"", "cannot be loaded: "),
        (b"PK\x03\x04 and so on", "cannot be loaded: "),
    ],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_that_cannot_be_loaded_is_named(content, message, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
    error = refused(path, tmp_path / "x.tflite")
    assert message in error
    assert str(path) in error


def test_lambda_layer_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), kl.Lambda(lambda x: 2 * x)]).save(path)
    assert "potential risk of arbitrary code execution" in refused(
        path, tmp_path / "x.tflite"
    )


@pytest.mark.parametrize("name", ["model.bin", "no_such_folder/model.tflite"])
def test_destination_is_checked_before_anything_else(name, tmp_path):
    message = refused("no_such_model.keras", tmp_path / name)
    assert message.startswith("Argument `path` must")


@pytest.mark.parametrize("arguments", [(), ("a.keras",), ("a", "b", "c")])
def test_wrong_number_of_arguments_is_a_wrong_request(arguments):
    message = refused(*arguments, status=2)
    assert message == (
        "expected the paths of a model and of the file to write, got "
        f"{len(arguments)} arguments. See --help."
    )


def test_unknown_target_is_refused_with_the_known_ones(saved):
    with pytest.raises(flags.IllegalFlagValueError, match="float"):
        run(saved, "x.tflite", "--target=smal")


def test_command_runs_as_a_process(saved, tmp_path):
    path = tmp_path / "model.tflite"
    requests = [
        [saved, str(path), "--target=float"],
        ["no_such.keras", str(path)],
        [saved, str(path), "--target=smal"],
        ["--help"],
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "keras_sq.export", *request],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for request in requests
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    # absl's status of --help is 1.
    assert [process.returncode for process in processes] == [0, 1, 2, 1]
    assert outputs[0][0].startswith(f"{path}: {path.stat().st_size:,} bytes")
    assert reader.read(path)["report"]["target"] == "float"
    assert "There is no model 'no_such.keras'" in outputs[1][1].splitlines()[-1]
    assert "value should be one of <float|" in outputs[2][1].splitlines()[-1]
    for target in kinds.KINDS:
        assert f"{target}: " in " ".join(outputs[3][0].split())
    for _, error in outputs:
        assert "Traceback" not in error
        assert "RuntimeWarning" not in error
