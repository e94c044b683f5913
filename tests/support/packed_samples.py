"""Contents with a segment of every form, sound and damaged."""

import random
import struct
import zlib

import fuzzing
import numpy as np

from keras_sq.export.packed import container, segments
from keras_sq.export.packed.segments import Constant


def content_and_constants(scale=1):
    """Returns bytes with a constant for each form, and where these lie.

    Args:
        scale: How many times larger the constants are than the smallest ones.
    """
    generator = np.random.default_rng(0)
    count = 480 * scale

    def nibbles(levels, bits):
        digits = generator.choice(levels, (count, 8 // bits)).astype(np.int64)
        digits[generator.random(digits.shape) < 0.3] = 0
        return (digits << np.arange(0, 8, bits)).sum(axis=1).astype(np.uint8)

    channels = generator.normal(size=(8, 1, 5)).astype("<f4")
    by_first = np.take_along_axis(
        channels, generator.integers(0, 5, (8, count // 8, 1)), axis=2
    )
    by_last = generator.integers(-99, 99, (4, 6)).astype(np.int8)
    which = generator.choice(4, count // 2 * 6, p=[0.7, 0.1, 0.1, 0.1])
    by_last = by_last[which.reshape(-1, 6), np.arange(6)]
    arrays = [
        generator.choice(np.array([-127, 0, 127], "i1"), (count, 2)),
        nibbles(3, 2),
        nibbles(7, 4),
        (generator.random((count, 8)) < 0.05).astype(np.uint8).dot(2 ** np.arange(8)),
        generator.normal(size=count).astype("<f4"),
        generator.integers(0, 700, count).astype("<i2"),
        by_first.astype("<f4"),
        by_last,
    ]
    arrays[3] = arrays[3].astype(np.uint8)
    parts, constants, end = [], [], 0
    for number, array in enumerate(arrays):
        name = f"tensor {number} of the network".encode()
        parts += [name, bytes(-(end + len(name)) % 16), array.tobytes()]
        start = end + len(name) + (-(end + len(name)) % 16)
        constants.append(Constant(start, array.nbytes, array.shape))
        end = start + array.nbytes
    return b"".join([*parts, b"the end"]), constants


def packed(content, constants):
    """Returns the packed file of bytes."""
    array = np.frombuffer(content, np.uint8)
    return container.write(content, segments.choose(array, constants))


def resealed(content):
    """Returns a packed file with the size and check sum that its header should have."""
    if len(content) < 28:
        return content
    data = bytearray(content)
    struct.pack_into("<I", data, 12, len(data))
    description = data[28 : 28 + struct.unpack_from("<I", data, 20)[0]]
    struct.pack_into("<I", data, 24, zlib.crc32(description, zlib.crc32(data[:24])))
    return bytes(data)


def damaged(content, cases, seed):
    """Returns damaged copies of a packed file, none of them equal to it.

    A quarter is cut off, a quarter has flipped bits, a quarter is damaged in any way.
    In a quarter the description is damaged, and the check sum of the header is right.
    """
    rng = random.Random(seed)
    size = len(content)
    description = struct.unpack_from("<I", content, 20)[0]
    files = []
    while len(files) < cases:
        data, kind = bytearray(content), len(files) % 4
        if kind == 0:
            del data[rng.randrange(size) :]
        elif kind == 1:
            for _ in range(rng.choice([1, 1, 2, 16])):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data = bytearray(fuzzing.damaged(content, rng))
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                place = rng.choice([5, *range(28, 28 + description)])
                data[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            data = resealed(data)
        if bytes(data) != content:
            files.append(bytes(data))
    return files
