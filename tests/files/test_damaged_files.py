"""Damaged, absurd and hostile files: a clear error, or the right result.

The cases are made and read by fuzzing.py. For a longer search with new ones:

    FUZZ_CASES=20 python -m pytest tests/files/test_damaged_files.py

reads twenty times as many.
"""

import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import pickle
import shutil
import threading
import tracemalloc
import zipfile

import fuzzing
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from keras import layers as kl

import keras_sq
from keras_sq.analysis import training_report
from keras_sq.experiments import callbacks, run_folder, train, training_files
from keras_sq.experiments import config as training_config
from keras_sq.experiments.flags import define_flags
from keras_sq.export.__main__ import load_examples
from keras_sq.files import file_checks
from keras_sq.files.loading import load_model

FACTOR = int(os.environ.get("FUZZ_CASES", "1"))


def test_damaged_files_give_the_right_result_or_a_clear_error():
    found = fuzzing.run(1000 * FACTOR, first=0 if FACTOR == 1 else 100_000)
    assert [entry[0] for entry in found] == sorted({entry[0] for entry in found})
    assert len(found) == 1000 * FACTOR
    wrong = [entry for entry in found if entry[2] not in ("right", "refused")]
    assert wrong == []
    for kind, share in fuzzing.SHARES.items():
        outcomes = [entry[2] for entry in found if entry[1] == kind]
        assert len(outcomes) == share * FACTOR
        assert outcomes.count("refused") > len(outcomes) // 4, kind
    for kind in ("tflite", "keras", "keras_parts", "h5", "run", "examples"):
        assert (kind, "right") in {entry[1:3] for entry in found}


def test_case_that_ends_the_process_or_is_wrong_is_reported(tmp_path, monkeypatch):
    # What finds errors must be able to.
    script = tmp_path / "fuzzing.py"
    text = pathlib.Path(fuzzing.__file__).read_text("utf-8")
    begin = text.index("    files = Files(folder)\n")
    end = text.index("    before = resource", begin)
    text = text[:begin] + "    files = Worst()\n" + text[end:]
    text = text.replace(
        "# Running.\n",
        "class Worst:\n"
        "    def __getattr__(self, name):\n"
        "        return lambda rng: (name, self.read)\n"
        "    def read(self):\n"
        "        if not hasattr(Worst, 'seen'):\n"
        "            Worst.seen = True\n"
        "            raise KeyError('x')\n"
        "        os._exit(3)\n",
    )
    script.write_text(text, "utf-8")
    monkeypatch.setattr(fuzzing, "__file__", str(script))
    found = fuzzing.run(3)
    assert [entry[0] for entry in found] == [0, 1, 2]
    assert found[0][2] == "WRONG KeyError: 'x'"
    assert found[1][2].startswith("ENDS THE PROCESS (3)")
    assert found[2][2] == "WRONG KeyError: 'x'"


# Model files.


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    plain = keras.Sequential(
        [keras.Input((8,)), kl.Dense(16, name="hidden"), kl.Dense(3, name="logits")]
    )
    return keras_sq.quantize_model(plain, "lq-2", seed=0, overrides={})


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.keras"
    model.save(path)
    return path


def latent_kernel(model):
    return np.asarray(model.get_layer("hidden").latent())


def test_flipped_bit_in_a_weight_is_noticed(model, saved):
    content = bytearray(saved.read_bytes())
    content[content.index(latent_kernel(model).tobytes()) + 7] ^= 1
    assert load_model(saved).get_layer("hidden").ratio == 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or cut off .Bad CRC-32") as error:
        load_model(saved)
    assert str(saved) in str(error.value)


def rebuilt(path, **changes):
    """Replaces parts of a `.keras` file, with check sums that are right."""
    parts = {name.replace("_", ".", 1): value for name, value in changes.items()}
    path.write_bytes(fuzzing.with_parts(path.read_bytes(), parts))
    return path


def config_of(path):
    return json.loads(fuzzing.part(path.read_bytes(), "config.json"))


def test_model_that_asks_for_more_than_the_file_holds_is_refused(saved):
    config = config_of(saved)
    hidden = next(
        x for x in config["config"]["layers"] if x["config"]["name"] == "hidden"
    )
    hidden["config"]["units"] = 10**9  # 32 GB, if it were made.
    rebuilt(saved, config_json=json.dumps(config))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"asks for a weight of shape \(8, 1000000000"):
        load_model(saved)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**27


def test_files_are_loaded_in_threads_and_keras_stays_as_it_was(saved, tmp_path):
    config = config_of(saved)
    hostile = tmp_path / "hostile.keras"
    shutil.copy(saved, hostile)
    for layer in config["config"]["layers"]:
        if layer["config"]["name"] == "hidden":
            layer["config"]["units"] = 10**9
    rebuilt(hostile, config_json=json.dumps(config))
    original = keras.layers.Layer.add_weight
    start = threading.Barrier(8)

    def work(index):
        start.wait()
        seen = set()
        for _ in range(3):
            try:
                seen.add(load_model(hostile if index % 2 else saved).name)
            except ValueError as error:
                seen.add("more than the file holds" in str(error))
            seen.add(keras.layers.Layer.add_weight is original)
        return seen

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    name = load_model(saved).name
    assert found == [{name, True}, {True}] * 4
    assert keras.layers.Layer.add_weight is original
    kl.Dense(10**5).build((None, 100))


def test_weights_are_counted_together_and_only_while_loading(saved, monkeypatch):
    monkeypatch.setattr(file_checks, "SLACK", 0)
    load_model(saved)
    config = config_of(saved)
    hidden = next(
        x for x in config["config"]["layers"] if x["config"]["name"] == "hidden"
    )
    size = saved.stat().st_size
    hidden["config"]["units"] = 2 * size // (8 * 4) - 100
    rebuilt(saved, config_json=json.dumps(config))
    # The kernel alone would do; with the mask and the next layer it is too much.
    with pytest.raises(ValueError, match="more than the file holds"):
        load_model(saved)
    assert kl.Dense(10**5)(np.ones((1, 10))).shape == (1, 10**5)


def zip_of(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "model.keras"
    zip_of(path, [("config.json", "{}"), ("assets/x", b"\0" * 2**27)])
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    with pytest.raises(ValueError, match="would unpack to 134,217,730 bytes"):
        load_model(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
    zip_of(path, [("config.json", b" " * (2**25 + 1))])
    with pytest.raises(
        ValueError, match=r"config.json is longer than 33,554,432 bytes"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("entries", "method", "message"),
    [
        ([("config.json", "{}")], zipfile.ZIP_BZIP2, "is packed unlike Keras"),
        ([], zipfile.ZIP_STORED, "'config.json'"),
    ],
)
def test_other_zip_files_are_refused(entries, method, message, tmp_path):
    path = zip_of(tmp_path / "model.keras", entries, method)
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_parts_of_one_name_and_overlapping_parts_are_refused(tmp_path):
    path = tmp_path / "model.keras"
    with pytest.warns(UserWarning, match="Duplicate name"):
        zip_of(path, [("config.json", "{}"), ("config.json", "{}")])
    with pytest.raises(ValueError, match="several parts of one name"):
        load_model(path)
    zip_of(path, [("config.json", b"x" * 100), ("b", b"")], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # In the directory, that of `b`.
    data[entry + 20 : entry + 24] = len(data).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its parts overlap"):
        load_model(path)


def with_weights(path, change):
    """Changes the weights inside a `.keras` file."""
    content = io.BytesIO(fuzzing.part(path.read_bytes(), "model.weights.h5"))
    with h5py.File(content, "r+") as file:
        change(file)
    changes = {"model.weights.h5": content.getvalue()}
    path.write_bytes(fuzzing.with_parts(path.read_bytes(), changes))
    return path


KERNEL = "layers/sq_dense/vars/0"


def replace_kernel(file, make):
    assert KERNEL in file
    del file[KERNEL]
    make(file)


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset(KERNEL, layout)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: file.create_dataset(
                KERNEL, (2**40,), "f4", chunks=(2**16,), compression="gzip"
            ),
            "claims to hold 4,398,",
        ),
        (
            lambda file: file.__setitem__(KERNEL, h5py.ExternalLink("/a.h5", "/x")),
            "refers to another place",
        ),
        (
            lambda file: file.__setitem__(KERNEL, h5py.SoftLink("/layers")),
            "refers to another place",
        ),
        (
            lambda file: file.create_dataset(
                KERNEL, (10,), "f4", external=[("/etc/hostname", 0, 40)]
            ),
            "lies in another file",
        ),
        (virtual, "lies in another file"),
        (lambda file: file.create_dataset(KERNEL, data="text"), "holds no numbers"),
        (lambda file: file.create_dataset(KERNEL, (3,), "f4"), r"shape.*\(3,\)"),
    ],
)
def test_weights_that_are_huge_or_elsewhere_are_refused(make, message, saved):
    with_weights(saved, lambda file: replace_kernel(file, make))
    with pytest.raises(ValueError, match=message) as error:
        load_model(saved)
    assert str(saved) in str(error.value)


def test_heap_that_hdf5_reads_without_end_is_refused(tmp_path):
    path = tmp_path / "model.h5"
    keras.Sequential([keras.Input((3,)), kl.Dense(2)]).save(path)
    load_model(path)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL\x01")
    size = int.from_bytes(content[heap + 24 : heap + 32], "little")
    free = heap + 16  # The first entry; made the free one, of size zero.
    assert 0 < size < 10_000
    content[free : free + 2] = content[free + 8 : free + 16] = b"\0" * 2
    content[free + 8 : free + 16] = b"\0" * 8
    path.write_bytes(content[: path.stat().st_size])
    with pytest.raises(ValueError, match="its heap at byte"):
        load_model(path)


def test_heap_at_the_edge_of_a_piece_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    keras.Sequential([keras.Input((3,)), kl.Dense(2)]).save(path)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL\x01")
    content[heap + 16 : heap + 32] = b"\0" * 16
    path.write_bytes(content)
    for piece in (heap - 16, heap - 14, heap - 12, heap - 11, 17):
        monkeypatch.setattr(file_checks, "_PIECE", piece)
        with pytest.raises(ValueError, match=f"its heap at byte {heap:,} is none"):
            load_model(path)


# Files with code in them.


@dataclasses.dataclass
class Trap:
    """Makes files whose code leaves a mark when it runs.

    Attributes:
        mark: The file that is there then.
    """

    mark: object

    def sprung(self):
        """Whether code ran since the last time this was asked."""
        there = self.mark.exists()
        self.mark.unlink(missing_ok=True)
        return there

    def lambda_layer(self):
        function = eval(f"lambda x: open({str(self.mark)!r}, 'w').close() or x")
        return kl.Lambda(function, output_shape=(3,), name="bad")

    def saved_model(self, folder):
        """A layer around a SavedModel, which may read and write files."""
        mark = str(self.mark)

        class Module(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec((None, 3))])
            def serve(self, x):
                with tf.control_dependencies([tf.io.write_file(mark, "x")]):
                    return tf.identity(x)

        module = Module()
        tf.saved_model.save(module, folder, signatures=module.serve)
        return kl.TFSMLayer(str(folder), call_endpoint="serving_default", name="bad")


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path / "mark")


def in_container(path):
    """Hides the layer `bad` in a container of this package."""
    config = config_of(path)
    layers = config["config"]["layers"]
    place = next(i for i, x in enumerate(layers) if x["config"].get("name") == "bad")
    layers[place] = {
        "module": "keras_sq.layers.container",
        "class_name": "QuantizedContainer",
        "registered_name": "keras_sq>QuantizedContainer",
        "config": {"float_layer": layers[place], "quantized_children": {}},
    }
    return rebuilt(path, config_json=json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("lambda", "model.keras"),
        ("lambda", "model.h5"),
        ("lambda in a container", "model.keras"),
        ("saved model", "model.keras"),
        ("saved model in a container", "model.keras"),
    ],
)
def test_code_in_a_model_is_refused_and_not_run(kind, name, trap, tmp_path):
    path = tmp_path / name
    if kind.startswith("lambda"):
        layer = trap.lambda_layer()
    else:
        layer = trap.saved_model(tmp_path / "saved")
    keras.Sequential([keras.Input((3,)), layer]).save(path)
    if kind.endswith("container"):
        in_container(path)
    trap.sprung()
    # The trap works: who allows it runs the code.
    trusted = keras.models.load_model(path, compile=False, safe_mode=False)
    trusted(np.ones((1, 3), "float32"))
    assert trap.sprung()
    with pytest.raises(ValueError, match="arbitrary code execution") as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert not trap.sprung()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("activation", "Could not locate function 'system'"),
        ("kernel_quantizer", "Could not locate function 'system'"),
        ("input_quantizer", "Could not locate function 'system'"),
    ],
)
def test_function_of_another_module_is_not_found(place, message, saved):
    config = config_of(saved)
    layer = config["config"]["layers"][-1]
    assert layer["config"]["name"] == "logits"
    layer["config"][place] = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }
    rebuilt(saved, config_json=json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(saved)


def test_container_of_something_else_than_a_layer_is_refused(saved):
    config = config_of(saved)
    config["config"]["layers"][-1] = {
        "module": "keras_sq.layers.container",
        "class_name": "QuantizedContainer",
        "registered_name": "keras_sq>QuantizedContainer",
        "config": {
            "float_layer": {
                "module": "keras_sq",
                "class_name": "BinaryQuantizer",
                "registered_name": "keras_sq>BinaryQuantizer",
                "config": {},
            },
            "quantized_children": {},
        },
    }
    rebuilt(saved, config_json=json.dumps(config))
    with pytest.raises(ValueError, match="must name a class of layers. Received: 'Bin"):
        load_model(saved)


class Pickled:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["examples.npy", "examples.npz", "examples.pickle"])
def test_pickled_examples_are_refused_and_not_run(name, trap, tmp_path):
    path = tmp_path / name
    array = np.array([Pickled(trap.mark)], dtype=object)
    if name.endswith(".npz"):
        np.savez(path, x=array)
    elif name.endswith(".npy"):
        np.save(path, array)
    else:
        path.write_bytes(pickle.dumps(array))
    loaded = np.load(path, allow_pickle=True)
    if name.endswith(".npz"):
        loaded["x"]
    assert trap.sprung()
    with pytest.raises(ValueError, match="is no .npz or .npy file of numbers"):
        load_examples(str(path))
    assert not trap.sprung()


def test_pickled_weights_are_refused_and_not_run(trap, saved):
    made = io.BytesIO()
    np.savez(made, __root__=np.array(Pickled(trap.mark), dtype=object))
    np.load(io.BytesIO(made.getvalue()), allow_pickle=True)["__root__"]
    assert trap.sprung()
    with zipfile.ZipFile(saved) as archive:
        config = archive.read("config.json")
    zip_of(saved, [("config.json", config), ("model.weights.npz", made.getvalue())])
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_model(saved)
    assert not trap.sprung()


# Files of a training run.


ROW = dict.fromkeys(training_report.COLUMNS, 0.5) | {"run": "sq", "epoch": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "entry 0 is no epoch"),
        (json.dumps([{"run": "sq"}]), "entry 0 is no epoch"),
        (json.dumps([ROW | {"loss": None}]), "'loss' of entry 0 is 'None'"),
        (json.dumps([ROW | {"loss": "1"}]), "'loss' of entry 0 is '1'"),
        (json.dumps([ROW | {"loss": True}]), "'loss' of entry 0 is 'True'"),
        (json.dumps([ROW | {"run": 3}]), "'run' of entry 0 is '3'"),
        (json.dumps({}), "it holds no list"),
        ("[" * 10**5, "is damaged"),
        ("\xff", "is damaged: 'utf-8' codec can't decode"),
        (" " * (2**25 + 1), "it is longer than 33,554,432 bytes"),
    ],
)
def test_damaged_history_is_named(content, message, tmp_path):
    path = tmp_path / "sq.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        training_files.read_history(path)
    assert str(path) in str(error.value)
    training_files.write_json(path, [ROW, ROW | {"ratio": None}])
    assert len(training_files.read_history(path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.5", "x", 1), "could not convert string"),
        (lambda text: text.replace("0.5", "", 2), "could not convert string to float"),
        (lambda text: text + "sq,1\n", "a row has not 8 values"),
        (lambda text: text + "sq,1" + ",0" * 9 + "\n", "a row has not 8 values"),
        (lambda text: text.replace("loss", "lost", 1), "its columns must be"),
        (lambda text: text + "9" * 10**6, "field larger than field limit"),
        (lambda text: text + "\udcff", "can't decode byte"),
    ],
)
def test_damaged_table_of_epochs_is_named(change, message, tmp_path):
    path = tmp_path / "history.csv"
    text = training_report.history_csv([ROW])
    path.write_bytes(change(text).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        training_report.read_history(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"\xff", b"[" * 10**5, b'{"version": 1, "methods": 3}'),
        *(b'{"version": 1, "methods": [[3]]}', b'{"methods": ["sq"]}'),
        *(b'{"version": 1, "methods": ["*"]}', b'{"version": 1, "methods": ["../x"]}'),
    ],
)
def test_damaged_settings_of_a_run_are_named(content, tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FileExistsError, match="is not of a training run, or damaged"):
        folder.earlier_description()


def backup_folder(tmp_path, model):
    folder = tmp_path / "state" / "sq"
    kept = folder / "epoch-000001"
    kept.mkdir(parents=True)
    training_files.write_json(kept / "history.json", [ROW])
    model.save_weights(kept / "latest.weights.h5")
    file_checks.seal(kept)
    return folder, kept


@pytest.mark.parametrize("name", ["latest.weights.h5", "history.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "lost", "added"])
def test_damaged_backup_is_not_gone_on_with(damage, name, model, tmp_path):
    folder, kept = backup_folder(tmp_path, model)
    assert callbacks.Backup(folder, "sq").rows == [ROW]
    content = bytearray((kept / name).read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    if damage == "lost":
        (kept / name).unlink()
    else:
        (kept / (f"{name}.x" if damage == "added" else name)).write_bytes(content)
    with pytest.raises(training_files.DamagedRunError, match=name) as error:
        callbacks.Backup(folder, "sq")
    assert f"Remove the folder '{kept}'" in str(error.value)
    with pytest.raises(ValueError, match="to train from the start"):
        keras_sq.callbacks.AtomicBackup(folder).on_train_begin()


@pytest.mark.parametrize("broken", ["model", "history"])
def test_damaged_run_is_one_line_and_a_status(
    broken, tmp_path, monkeypatch, capsys, model
):
    settings = {"epochs": 1, "float_epochs": 1, "limit": 64, "verbose": 0}
    config = training_config.TrainConfig(**settings, output_dir=str(tmp_path / "run"))
    folder = config.claim_folder()
    for method in config.methods:
        model.save(folder.model(method.name))
        training_files.write_json(folder.history(method.name), [ROW])
    path = folder.model("float") if broken == "model" else folder.history("float")
    path.write_bytes(path.read_bytes()[:-30])
    resumed = dataclasses.replace(config, resume=True)
    monkeypatch.setattr(train, "config_from_flags", lambda values: resumed)
    values = flags.FlagValues()
    define_flags(values)
    values(["train"])
    assert train.main(values) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras_sq.train: error: ")
    assert str(path) in line
    assert "--resume." in line
