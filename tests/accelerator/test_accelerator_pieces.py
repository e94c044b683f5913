"""How the kit for a machine with a GPU is divided, and its images as pictures.

What is packed, unpacked and run is in test_accelerator_kit.py.
"""

import pathlib
import sys

import dividing
import numpy as np
import pictures
import pieces as kit_pieces
import pytest

KIT = pathlib.Path(__file__).parents[1] / "benchmarks" / "accelerator"


def test_pictures_keep_every_pixel():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (130, 32, 32, 3), np.uint8)
    smooth = np.sort(noise, axis=2)
    for images in (noise, smooth, noise[:1]):
        np.testing.assert_array_equal(pictures.decode(pictures.encode(images)), images)


def test_change_of_the_code_changes_no_other_piece():
    files = {f"images/{i:03}": bytes([i]) * 4000 for i in range(100)}
    limit = 300_000
    before = dividing.divide({"code": b"a" * 1000}, files, limit)
    after = dividing.divide({"code": b"b" * 1500}, files, limit)
    assert len(before) == 3
    assert before.pop("code.tar") != after.pop("code.tar")
    assert before == after
    assert {k: v for part in after.values() for k, v in part.items()} == files


@pytest.mark.parametrize("number", [1, 2, 7, 50, 51, 99])
def test_pieces_fit_whatever_the_sizes_of_the_files(number):
    random = np.random.default_rng(number)
    files = {str(i): bytes(int(random.integers(1, 60_000))) for i in range(number)}
    limit = 150_000
    parts = dividing.divide({"code": b"a" * 3000}, files, limit)
    code = len(dividing.archive(parts.pop("code.tar")))
    for part in parts.values():
        assert len(dividing.archive(part)) + code <= limit
    assert list(files) == [name for part in parts.values() for name in part]


def test_file_that_fits_no_piece_is_an_error():
    with pytest.raises(kit_pieces.KitError, match=r"`piece_mib` must be at least 2.*b"):
        dividing.divide({"code": b""}, {"a": b"x", "b": bytes(2**20)}, 2**20)


def test_full_disk_is_one_line(monkeypatch, capsys):
    def fail(arguments):
        raise OSError(28, "No space left on device", "/tmp/kit/site")

    monkeypatch.setattr(sys, "argv", ["unpack.py"])
    assert kit_pieces.run("unpack.py", fail) == 2
    expected = "unpack.py: error: No space left on device (/tmp/kit/site)\n"
    assert capsys.readouterr().err == expected
