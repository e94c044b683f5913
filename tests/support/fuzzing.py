"""Damages files of every kind that the package reads, and reads them.

    python tests/support/fuzzing.py --cases=20000 --first=1000

Each case is one damaged file: cut off, bits flipped, parts copied, numbers in it made
absurd, or built to ask for memory without end. It is read by the function that the
commands use, in a process (on Linux) that gets only `MEMORY` bytes more than it had,
and `SECONDS` of computing for each. Good are the right result and an error that names
the file; everything else, the end of the process included, is reported, and the exit
status is 1. The cases of a number are the same at every run; the test suite runs the
first thousand.
"""

import argparse
import collections
import faulthandler
import io
import json
import os
import pathlib
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile

MEMORY = 2**30
"""Bytes of address space beyond what the process has when it begins."""
SECONDS = 10
HANGS = 120
"""Seconds after which a case ends its process, whatever it does."""

ABSURD = [
    *(0, -1, 1, 7, 2**31 - 1, 2**31, 2**60, 10**400, 0.5, -1e308, float("nan")),
    *("", "x", "../x", "\0", "y" * 5000, None, True, [], {}, [[]], {"class_name": "x"}),
    *([2**40, 2**40], [-1], ["a"], [1] * 50, json.loads("[" * 200 + "]" * 200)),
]


# Damage.


def damaged(content, rng):
    """Returns bytes cut off, with bits flipped, words replaced or parts copied."""
    data = bytearray(content)
    kind = rng.randrange(6)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(rng.choice([1, 1, 4, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        words = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x10"]
        word = rng.choice([*words, rng.randbytes(4), rng.randbytes(8)])
        place = rng.randrange(len(data))
        data[place : place + len(word)] = word
    elif kind == 3:
        start, size = rng.randrange(len(data)), rng.choice([1, 8, 64, 1000])
        place = rng.randrange(len(data))
        data[place : place + size] = content[start : start + size]
    elif kind == 4:
        start, size = rng.randrange(len(data)), rng.choice([1, 8, 1000])
        del data[start : start + size]
    else:
        place, size = rng.randrange(len(data) + 1), rng.choice([1, 8, 1000])
        data[place:place] = rng.randbytes(size)
    return bytes(data)


def places(value):
    """Yields all containers and keys of parsed JSON."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        keys = entry if isinstance(entry, dict) else range(len(entry))
        for key in keys:
            yield entry, key
            if isinstance(entry[key], dict | list):
                waiting.append(entry[key])


def absurd_json(text, rng):
    """Returns JSON with some of its values replaced, removed or swapped."""
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 3])):
        found = list(places(value))
        entry, key = rng.choice(found)
        kind = rng.randrange(5)
        if kind == 0:
            del entry[key]
        elif kind == 1:
            other, place = rng.choice(found)
            entry[key] = json.loads(json.dumps(other[place]))
        else:
            entry[key] = rng.choice(ABSURD)
        if not value:
            break
    return json.dumps(value)


def damaged_text(text, rng):
    """Returns JSON as bytes that is damaged in its letters or in its values."""
    if rng.randrange(3):
        return absurd_json(text, rng).encode()
    return damaged(text.encode(), rng)


def with_parts(content, changes):
    """Returns a `.keras` file with some parts replaced, check sums and all."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
        for name in changes.keys() - set(old.namelist()):
            new.writestr(name, changes[name])
    return made.getvalue()


def part(content, name):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name)


# Sound files.


class Files:
    """Sound files of every kind, and readers that compare with what was written.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder):
        import h5py
        import keras
        import numpy as np
        from keras import layers as kl

        import keras_sq
        from keras_sq.analysis import training_report
        from keras_sq.experiments import training_files
        from keras_sq.files import file_checks
        from keras_sq.files.loading import load_model

        self.folder = folder
        keras.utils.set_random_seed(0)
        dense = keras.Sequential(
            [keras.Input((5,)), kl.Dense(6, name="a"), kl.Dense(2, name="b")]
        )
        recurrent = keras.Sequential([keras.Input((3, 2)), kl.LSTM(2)])
        image = keras.Input((5, 5, 2))
        x = kl.BatchNormalization()(kl.Conv2D(3, 3)(image))
        image = keras.Model(image, kl.Flatten()(x))
        lq = {
            "input_quantizer": "lq-2",
            "granularity": "element",
            "input_granularity": "element",
            "probability": "constant",
            "skip": (),
            "seed": 1,
        }
        models = [
            keras_sq.quantize_model(dense, "lq-2", **lq, overrides={}),
            keras_sq.quantize_model(recurrent, "binary", seed=2, overrides={}),
            keras_sq.quantize_model(
                image, "ternary", input_quantizer="binary", skip=()
            ),
        ]
        self.keras, self.h5 = [], []
        for number, model in enumerate(models):
            path = folder / f"sound{number}.keras"
            model.save(path)
            self.keras.append(path.read_bytes())
        for number, model in enumerate([dense, models[2]]):
            path = folder / f"sound{number}.h5"
            model.save(path)
            self.h5.append(path.read_bytes())
        # As if of Keras 2, whose configurations are changed before they are used.
        with h5py.File(path, "r+") as file:
            file.attrs["keras_version"] = "2.4.0"
        self.h5.append(path.read_bytes())
        self.known = [self.state_of(load_model(folder / "sound0.keras"))]
        self.known.append(self.state_of(load_model(folder / "sound1.keras")))
        self.known.append(self.state_of(load_model(folder / "sound2.keras")))
        self.tflite = []
        for target in ("float", "small"):
            path = folder / f"{target}.tflite"
            model = keras_sq.quantize_model(dense, "ternary", seed=0, overrides={})
            keras_sq.export(model, path, target=target, allow_untrained=True)
            self.tflite.append(path.read_bytes())
        self.tflite.append(keras_sq.pack_file(path))
        values = dict.fromkeys(training_report.COLUMNS[2:], 0.25)
        self.rows = [{"run": "sq", "epoch": epoch, **values} for epoch in range(3)]
        self.csv = training_report.history_csv(self.rows).encode()
        self.backup = folder / "sound" / "epoch-000003"
        self.backup.mkdir(parents=True)
        training_files.write_json(self.backup / "history.json", self.rows)
        models[0].save_weights(self.backup / "latest.weights.h5")
        (self.backup / "training_metadata.json").write_text('{"epoch": 3}')
        file_checks.seal(self.backup)
        self.arrays = {"x": np.arange(40.0).reshape(8, 5), "y": np.ones((2, 2), "i1")}
        self.examples = []
        for save in (np.savez, np.savez_compressed):
            made = io.BytesIO()
            save(made, **self.arrays)
            self.examples.append(made.getvalue())
        made = io.BytesIO()
        np.save(made, self.arrays["x"])
        self.examples.append(made.getvalue())

    @staticmethod
    def state_of(model):
        """Returns what two equal models have in common."""
        config = json.dumps(model.get_config(), sort_keys=True, default=str)
        return config, [weight.tobytes() for weight in model.get_weights()]

    # Each makes a file and returns its path and the function that reads it.

    def case_tflite(self, rng):
        from keras_sq.export.inspection import contents, reader, table

        path = self.write("case.tflite", damaged(rng.choice(self.tflite), rng))
        by_itself = rng.randrange(20) == 0

        def read():
            if by_itself:
                result = reader.read(path)
            else:  # The same, without the process around it.
                try:
                    result = contents.contents(path.read_bytes())
                except ValueError as error:
                    raise ValueError(f"'{path}': {error}") from error
            json.dumps(result)
            table.table(result, "x")

        return path, read

    def case_keras(self, rng):
        number = rng.randrange(len(self.keras))
        path = self.write("case.keras", damaged(self.keras[number], rng))
        return path, self.loads(path, self.known[number])

    def case_keras_parts(self, rng):
        content = rng.choice(self.keras)
        name = rng.choice(["config.json"] * 3 + ["model.weights.h5", "metadata.json"])
        old = part(content, name)
        if name.endswith(".json"):
            changed = damaged_text(old.decode(), rng)
        else:
            changed = damaged(old, rng)
        path = self.write("case.keras", with_parts(content, {name: changed}))
        return path, self.loads(path)

    def case_h5(self, rng):
        path = self.write("case.h5", damaged(rng.choice(self.h5), rng))
        return path, self.loads(path)

    def case_h5_parts(self, rng):
        import h5py

        path = self.write("case.h5", rng.choice(self.h5))
        with h5py.File(path, "r+") as file:
            text = file.attrs["model_config"]
            text = text if isinstance(text, str) else text.decode()
            if rng.randrange(2):
                changed = absurd_json(text, rng)
                if len(changed) < 60_000:
                    file.attrs["model_config"] = changed
            else:
                damage_h5(file, rng)
        return path, self.loads(path)

    def case_run(self, rng):
        from keras_sq.experiments import config as training_config
        from keras_sq.experiments import run_folder, training_files

        folder = run_folder.RunFolder(self.folder)
        settings = training_config.TrainConfig().description()
        if rng.randrange(2):
            content = damaged_text(json.dumps(settings), rng)
            path = self.write("config.json", content)
            return path, folder.earlier_description
        path = self.write("case.json", damaged_text(json.dumps(self.rows), rng))
        return path, lambda: training_files.read_history(path)

    def case_csv(self, rng):
        from keras_sq.analysis import training_report

        path = self.write("case.csv", damaged(self.csv, rng))
        return path, lambda: training_report.read_history(path)

    def case_backup(self, rng):
        import shutil

        from keras_sq.experiments import callbacks

        folder = self.folder / "backup"
        shutil.rmtree(folder, ignore_errors=True)
        place = folder / self.backup.name
        shutil.copytree(self.backup, place)
        name = rng.choice(sorted(path.name for path in place.iterdir()))
        if rng.randrange(10):
            content = (place / name).read_bytes()
            (place / name).write_bytes(damaged(content, rng))
        else:
            (place / name).unlink()

        def read():
            backup = callbacks.Backup(folder, "sq")
            expect(backup.rows == self.rows, "other rows")
            for path in self.backup.iterdir():
                same = (place / path.name).read_bytes() == path.read_bytes()
                expect(same or path.name == "checksums.json", "other content")

        return place, read

    def case_examples(self, rng):
        from keras_sq.export.__main__ import load_examples

        number = rng.randrange(len(self.examples))
        path = self.write("case.npz", damaged(self.examples[number], rng))

        def read():
            found = load_examples(str(path))
            if number < 2:  # There are no check sums in an .npy file.
                expect(same_arrays(found, self.arrays), "other numbers")

        return path, read

    def case_huge(self, rng):
        made = rng.choice(HUGE)(self, rng)
        name, content = made
        path = self.write(name, content)
        if path.suffix == ".tflite":
            from keras_sq.export.inspection import reader

            return path, lambda: reader.read(path)
        if path.suffix in (".npy", ".npz"):
            from keras_sq.export.__main__ import load_examples

            return path, lambda: load_examples(str(path))
        if path.suffix == ".json":
            from keras_sq.experiments import training_files

            return path, lambda: training_files.read_history(path)
        if path.suffix == ".csv":
            from keras_sq.analysis import training_report

            return path, lambda: training_report.read_history(path)
        return path, self.loads(path)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def loads(self, path, known=None):
        """Returns the reader of a model, which must be a known one."""
        from keras_sq.files.loading import load_model

        def read():
            model = load_model(path)
            if known is not None:
                expect(self.state_of(model) == known, "another model")

        return read


def same_arrays(found, known):
    """Whether dicts hold the same arrays; the directory of a file may have lost one."""
    import numpy as np

    found = found if isinstance(found, dict) else {"x": found}
    return all(
        any(np.array_equal(value, other) for other in known.values())
        for value in found.values()
    )


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def damage_h5(file, rng):
    """Makes one of the datasets absurd, or a link."""
    import h5py

    found = []
    file.visititems(lambda name, x: found.append(name) if hasattr(x, "shape") else None)
    name = rng.choice(found)
    del file[name]
    size = rng.choice([2**20, 2**28, 2**40, 2**60])
    kind = rng.randrange(6)
    if kind == 0:
        dataset = {"shape": (size,), "dtype": "f4", "chunks": (2**16,)}
        file.create_dataset(name, **dataset, compression="gzip")
    elif kind == 1:
        file.create_dataset(name, shape=(2 ** rng.randrange(12, 30), 3), dtype="f4")
    elif kind == 2:
        file[name] = h5py.ExternalLink("/etc/hostname", "/x")
    elif kind == 3:
        file[name] = h5py.SoftLink(rng.choice(found))
    elif kind == 4:
        file.create_dataset(name, data="text")
    else:
        external = [("/etc/hostname", 0, 4 * 10)]
        file.create_dataset(name, (10,), "f4", external=external)


# Files that claim to be huge. Each returns a name and content.


def huge_lengths(files, rng):
    """A length or an offset of a TFLite file that is far out."""
    data = bytearray(rng.choice(files.tflite))
    place = 4 * rng.randrange(len(data) // 4)
    number = rng.choice([2**31 - 1, 2**31, 2**32 - 1, 2**30, 10**9])
    struct.pack_into("<I", data, place, number)
    return "case.tflite", bytes(data)


def zip_bomb(files, rng):
    """A part that unpacks to a thousand times its size."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        name = rng.choice(["config.json", "model.weights.h5", "assets/x", "x.npy"])
        archive.writestr(name, b"[" * rng.choice([2**25, 2**27]))
        if name != "config.json":
            config = part(files.keras[0], "config.json")
            archive.writestr("config.json", config)
    return rng.choice(["case.keras", "case.npz"]), made.getvalue()


def absurd_layer(files, rng):
    """A model whose configuration asks for a kernel of terabytes."""
    number = rng.randrange(len(files.keras))
    config = json.loads(part(files.keras[number], "config.json"))
    size = rng.choice([10**6, 10**8, 2**31, 2**60])
    for entry, key in list(places(config)):
        if not isinstance(key, str):
            continue
        if key in ("units", "filters") and isinstance(entry[key], int):
            entry[key] = size
        elif key.endswith("_shape") and entry[key]:
            entry[key] = [*entry[key][:-1], rng.choice([entry[key][-1], size])]
    content = json.dumps(config)
    return "case.keras", with_parts(files.keras[number], {"config.json": content})


def deep_json(files, rng):
    """Brackets in brackets."""
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    depth = rng.choice([500, 5000, 10**6])
    text = opening * depth + "1" + closing * depth
    if rng.randrange(2):
        return "case.json", text.encode()
    return "case.keras", with_parts(files.keras[0], {"config.json": text})


def deep_layers(files, rng):
    """Models in models."""
    config = json.loads(part(files.keras[0], "config.json"))
    for _ in range(rng.choice([20, 200])):
        settings = {"name": "m", "layers": [config]}
        config = {"module": "keras", "class_name": "Sequential", "config": settings}
    content = json.dumps(config)
    return "case.keras", with_parts(files.keras[0], {"config.json": content})


def h5_bomb(files, rng):
    """Weights of terabytes that take no place."""
    import h5py

    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        shape = rng.choice([(2**29,), (2**40,), (2**20, 2**20, 2**20)])
        chunks = (2**16,) + (1,) * (len(shape) - 1)
        for number in range(rng.choice([1, 30])):
            name = f"layers/dense/vars/{number}"
            dataset = {"shape": shape, "dtype": "f4", "chunks": chunks}
            file.create_dataset(name, **dataset, compression="gzip")
    changes = {"model.weights.h5": made.getvalue()}
    return "case.keras", with_parts(rng.choice(files.keras), changes)


def array_bomb(files, rng):
    """An array of terabytes in a header of a hundred bytes."""
    count = rng.choice([2**31, 2**40, 2**60, 2**70])
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}"
    header = header.ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    if rng.randrange(2):
        return "case.npy", data
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x.npy", data)
    return "case.npz", made.getvalue()


def long_text(files, rng):
    """A history of many millions of letters."""
    filler = rng.choice([b"9", b"x", b"\xff", b",", b"\n"]) * rng.choice([10**6, 10**7])
    return "case.csv", files.csv + filler


HUGE = (
    *(huge_lengths, zip_bomb, absurd_layer, absurd_layer, deep_json, deep_layers),
    *(h5_bomb, array_bomb, long_text),
)

# How many of a thousand cases.
SHARES = {
    "tflite": 200,
    "keras": 150,
    "keras_parts": 120,
    "h5": 120,
    "h5_parts": 50,
    "run": 120,
    "csv": 80,
    "backup": 50,
    "examples": 60,
    "huge": 50,
}
ORDER = [kind for kind, share in SHARES.items() for _ in range(share)]
random.Random(0).shuffle(ORDER)


# Running.


def outcome(files, number):
    """Returns what became of one case, such as `"right"` or `"refused"`."""
    kind = ORDER[number % len(ORDER)]
    rng = random.Random(f"{kind} {number}")
    path, read = getattr(files, f"case_{kind}")(rng)
    start = time.process_time()
    try:
        read()
        found = "right"
    except (OSError, ValueError) as error:
        text = str(error)
        found = "refused"
        if isinstance(error, UnicodeError) or str(path) not in text:
            found = f"UNCLEAR {type(error).__name__}: {text[:300]}"
        elif len(text) > 3000:
            found = f"UNCLEAR {len(text)} letters: {text[:300]}"
    except BaseException as error:
        found = f"WRONG {type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - start
    if seconds > SECONDS:
        found = f"SLOW {seconds:.0f} s ({found})"
    return found, seconds


def child(folder, first, last):
    """Reads cases, and prints the outcomes as lines of JSON."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    warnings.simplefilter("ignore")
    folder.mkdir(exist_ok=True)
    files = Files(folder)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = used * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, last):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        found, seconds = outcome(files, number)
        faulthandler.cancel_dump_traceback_later()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = [number, found, round(seconds, 3), (after - before) // 1024]
        print(json.dumps(line), flush=True)


def run(cases, first=0):
    """Runs cases in a process of their own, or several if one ends.

    Returns:
        For each case its number, kind, outcome, seconds, and by how many MiB the
        process grew up to then.
    """
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        last = first + cases
        while first < last:
            folder = pathlib.Path(temporary) / str(first)
            arguments = [f"--child={folder}", f"--first={first}", f"--last={last}"]
            result = subprocess.run(
                [sys.executable, __file__, *arguments],
                env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
                capture_output=True,
                text=True,
            )
            for line in result.stdout.splitlines():
                number, text, seconds, grown = json.loads(line)
                found.append((number, ORDER[number % 1000], text, seconds, grown))
                first = number + 1
            if result.returncode:
                reason = " ".join(result.stderr.split())[-1500:]
                text = f"ENDS THE PROCESS ({result.returncode}): {reason}"
                found.append((first, ORDER[first % 1000], text, 0.0, 0))
                first += 1
    return found


def report(found):
    """Prints a table, then what was wrong; returns whether anything was."""
    print("kind          cases   right  refused  slowest")
    for kind in SHARES:
        of_kind = [entry for entry in found if entry[1] == kind]
        counts = collections.Counter(text for _, _, text, _, _ in of_kind)
        slowest = max((seconds for _, _, _, seconds, _ in of_kind), default=0.0)
        print(
            f"{kind:12}{len(of_kind):7,}{counts['right']:8,}{counts['refused']:9,}"
            f"{slowest:8.1f} s"
        )
    print(f"The process grew by {max(entry[4] for entry in found):,} MiB at most.")
    wrong = [entry for entry in found if entry[2] not in ("right", "refused")]
    for number, kind, text, _, _ in wrong:
        print(f"\nCase {number} ({kind}): {text}")
    return bool(wrong)


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first.")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.first, arguments.last)
        return 0
    return int(report(run(arguments.cases, arguments.first)))


if __name__ == "__main__":
    sys.exit(main())
