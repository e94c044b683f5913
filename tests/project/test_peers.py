"""The comparison with other packages works without any of them.

Scripts of the peers run in their environments only: `tests/benchmarks/peers.py`.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_sq

pytestmark = pytest.mark.tensorflow

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"

SCRIPT = """
import json, pathlib, sys
method, *flags = sys.argv[1:]
given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
with open(pathlib.Path(given["work"], "calls"), "a") as calls:
    calls.write(f"{method} {given['seed']}\\n")
result = {"could_not": {}, "accuracy": 0.5, "trains": True, "finished": True}
if method == "dies":
    pathlib.Path(given["result"]).write_text(json.dumps(result | {"finished": False}))
    sys.exit("the kernel is not finite")
if method == "silent":
    sys.exit(0)
pathlib.Path(given["result"]).write_text(json.dumps(result))
"""
"""A peer that ends well, badly, or without a word."""


@pytest.fixture
def peers(monkeypatch):
    """The script, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    return peers


@pytest.fixture
def harness(monkeypatch):
    """What the scripts of the peers share."""
    monkeypatch.syspath_prepend(BENCHMARKS / "peer_scripts")
    import harness

    return harness


@pytest.fixture
def folder(tmp_path):
    """Work of one seed: eight images, which are not worth training on."""
    random = np.random.default_rng(0)
    settings = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "pairs": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    own = tmp_path / "seed-0"
    own.mkdir()
    images = random.integers(0, 256, (8, 8, 8, 1)).astype("uint8")
    labels = np.arange(8, dtype="int32") % 3
    np.savez(own / "train.npz", images=images, labels=labels)
    scale = {"mean": np.float32([128]), "std": np.float32([64])}
    np.savez(tmp_path / "test.npz", test_images=images, test_labels=labels, **scale)
    return tmp_path


def with_start(harness, folder):
    """Returns the work, once it has a float network to begin with."""
    model = harness.network.resnet8(keras, (8, 8, 1), 3)
    for name in ("start", "trained"):
        start = harness.network.get_start(model)
        np.savez(folder / "seed-0" / f"{name}.npz", **start)
    return harness.read_work(folder, 0)


def run(harness, peer, folder):
    """Returns the result of a peer's script."""
    path = folder / "seed-0" / "peer-method.json"
    flags = ["method", f"--work={folder}", "--seed=0", f"--result={path}"]
    assert harness.run(peer, flags) == 0
    return json.loads(path.read_text())


def test_network_is_the_one_of_the_package(harness):
    theirs = keras_sq.models.get("resnet8", (32, 32, 3), 10)
    ours = harness.network.resnet8(keras, (32, 32, 3), 10)
    assert ours.count_params() == theirs.count_params() == 78_666
    harness.network.set_start(ours, harness.network.get_start(theirs))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_start_reaches_latent_kernels_and_misses_none(harness):
    model = harness.network.resnet8(keras, (8, 8, 1), 3)
    start = harness.network.get_start(model)
    quantized = keras_sq.quantize_model(model, "ternary", skip=(), overrides={})
    start["conv1/kernel"] = start["conv1/kernel"] + 1
    harness.network.set_start(quantized, start)
    latent = quantized.get_layer("conv1").latent()
    np.testing.assert_array_equal(latent, start["conv1/kernel"])
    with pytest.raises(ValueError, match="no variable 'conv9/kernel' to begin with"):
        harness.network.set_start(model, start | {"conv9/kernel": np.zeros(3)})


def test_what_a_peer_cannot_do_is_noted_and_the_rest_done(harness, folder):
    with_start(harness, folder)

    def make(work, method):
        return work.network()

    def fails(model, path, method, work):
        raise NotImplementedError("no operator\nfor this")

    peer = harness.Peer(("keras",), make, fails, trains=False)
    result = run(harness, peer, folder)
    assert result["could_not"] == {"file": "NotImplementedError: no operator for this"}
    assert 0 <= result["accuracy"] <= 1 and result["finished"]
    assert result["versions"] == {"keras": keras.__version__}

    peer = harness.Peer(("keras",), lambda work, method: 1 / 0, fails)
    result = run(harness, peer, folder)
    assert result["could_not"] == {"network": "ZeroDivisionError: division by zero"}
    assert result["finished"]


def test_training_sees_the_batches_in_their_order(harness, folder):
    work = with_start(harness, folder)
    assert work.steps == 2 and work.classes == 3
    seen = [(np.array(x), np.array(y)) for x, y in work.batches()]
    images = np.concatenate([x for x, _ in seen])
    np.testing.assert_allclose(images, (work.images - 128.0) / 64, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([y for _, y in seen]), work.labels)


def test_results_that_are_there_are_not_made_again(peers, tmp_path, monkeypatch):
    made = {"ours": peers.Peer(("good", "dies", "silent"), None)}
    (tmp_path / "with_ours.py").write_text(SCRIPT)
    (tmp_path / "seed-0").mkdir()
    monkeypatch.setattr(peers, "PEERS", made)
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    calls = tmp_path / "calls"
    flags = peers.parsed(["--only", "ours"])
    peers.run_peer("ours", tmp_path, tmp_path, flags)
    assert calls.read_text().splitlines() == ["good 0", "dies 0", "silent 0"]
    found = peers.results(tmp_path, flags)
    failures = {key[1]: rows[0]["could_not"] for key, rows in found.items()}
    assert failures == {
        "good": {},
        "dies": {"process": "ended with exit status 1: the kernel is not finite"},
        "silent": {"process": "ended without a result"},
    }
    assert found["ours", "dies"][0]["accuracy"] == 0.5, "what it had done is kept"

    peers.run_peer("ours", tmp_path, tmp_path, flags)
    assert len(calls.read_text().splitlines()) == 3
    made["ours"] = peers.Peer(("good", "dies"), None)
    flags = peers.parsed(["--only", "ours", "--retry"])
    peers.run_peer("ours", tmp_path, tmp_path, flags)
    assert calls.read_text().splitlines()[3:] == ["dies 0"]


def test_a_process_that_hangs_is_stopped(peers, tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    flags = peers.parsed(["--timeout=0.5"])
    wrong = peers.process(command, tmp_path / "log", flags, {})
    assert wrong == "stopped after 0.5 seconds"


def test_an_environment_that_cannot_be_made_stops_nobody(peers, tmp_path, monkeypatch):
    made = {"theirs": peers.Peer(("one", "two"), ("nothing==1",))}
    monkeypatch.setattr(peers, "PEERS", made)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    (tmp_path / "seed-0").mkdir()
    flags = peers.parsed(["--only", "theirs"])
    peers.run_peer("theirs", tmp_path, tmp_path / "environments", flags)
    found = peers.results(tmp_path, flags)
    assert set(found) == {("theirs", "one"), ("theirs", "two")}
    for rows in found.values():
        assert "nowhere" in rows[0]["could_not"]["process"]


def test_an_environment_is_used_again_if_nothing_else_is_asked_for(peers, tmp_path):
    peer = peers.Peer((), ("one==1", "two==2"))
    (tmp_path / "theirs").mkdir()
    done = tmp_path / "theirs" / "requirements.txt"
    done.write_text("one==1\ntwo==2")
    assert peers.environment("theirs", peer, tmp_path).startswith(str(tmp_path))
    assert peers.environment("ours", peers.Peer((), None), tmp_path) == sys.executable


def test_a_folder_of_other_settings_is_refused(peers, tmp_path):
    work = tmp_path / "work"
    peers.claim(work, peers.parsed(["--dataset=digits"]))
    peers.claim(work, peers.parsed(["--dataset=digits", "--seeds=3"]))
    with pytest.raises(peers.PeersError, match="holds work of other settings"):
        peers.claim(work, peers.parsed(["--dataset=digits", "--epochs=7"]))
    (tmp_path / "mine.txt").touch()
    with pytest.raises(peers.PeersError, match="no folder of this script"):
        peers.claim(tmp_path, peers.parsed([]))


def test_every_peer_has_a_script(peers):
    for name, peer in peers.PEERS.items():
        assert (peers.SCRIPTS / (peer.script or f"with_{name}.py")).is_file(), name


def test_table_has_mean_spread_and_what_could_not_be_done(peers):
    step = {"step_cpu": [1.0, 1.1, 1.2], "trains": True}
    results = {
        ("ours", "ternary"): [
            {"accuracy": 0.80, "file_bytes": 30_000, "could_not": {}, **step},
            {"accuracy": 0.82, "file_bytes": 30_000, "could_not": {}, **step},
        ],
        ("theirs", "int8"): [
            {"accuracy": None, "trains": False, "could_not": {"file": "no"}}
        ]
        * 2,
    }
    text = peers.peer_table.report(results, "What was done.", ("calm", "busy"))
    assert "| ours | ternary | 81.0 ± 1.4 | – | 1.10 (1.00-1.20) | 30,000 |" in text, (
        text
    )
    assert "| theirs | int8 | – | – | no training | – |" in text
    assert "- theirs, int8: file: no (2 seeds)" in text
    assert "Machine before: calm; after: busy." in text


@pytest.mark.slow
def test_this_package_on_the_digits(peers, tmp_path, monkeypatch, capsys):
    made = {
        "float": peers.Peer(("trained-on",), None),
        "keras_sq": peers.Peer(("ternary-sq",), None),
    }
    monkeypatch.setattr(peers, "PEERS", made)
    flags = ["--dataset=digits", "--start_epochs=1", "--epochs=1", "--pairs=2"]
    assert peers.main([*flags, f"--work={tmp_path}/work"]) == 0
    text = capsys.readouterr().out
    assert "All of it could be done." in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:]] == ["trained-on", "ternary-sq"]
    for _, method, accuracy, of_file, *_ in rows[2:]:
        # The file may differ from the network where two logits are nearly alike.
        assert abs(float(accuracy) - float(of_file)) < 1, method
    float_size, ternary_size = (
        int(row[5].rstrip(" |").replace(",", "")) for row in rows[2:]
    )
    assert float_size > 5 * ternary_size
    assert (tmp_path / "work" / "peers.md").read_text() in text
