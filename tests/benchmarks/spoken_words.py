"""Has a speech synthesizer say the keywords of MLPerf Tiny: a data set of sound.

    apt-get install espeak-ng
    python tests/benchmarks/spoken_words.py --data_dir=~/tensorflow_datasets
    python -m keras_sq.train --dataset=spoken_words --model=ds_cnn ...

It has the shape of Speech Commands (one second at 16 kHz, ten keywords, unknown words
and silence, in the order of its labels) without the download: the same numbers on
every machine that has the same synthesizer. Words are said by voices with accents, at
many pitches and speeds, anywhere in the second, over noise and over other words. No
voice is in two splits. It is no measure of what a network understands of people.

References:
    - [Warden, 2018](https://arxiv.org/abs/1804.03209), Speech Commands: the words
"""

import io
import itertools
import os
import shutil
import subprocess
import wave
from collections.abc import Iterator, Sequence
from concurrent import futures

import numpy as np
import numpy.typing as npt
import scipy.signal
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags

KEYWORDS = "down go left no off on right stop up yes".split()
OTHERS = (
    "zero one two three four five six seven eight nine bed bird cat dog happy house "
    "marvin sheila tree wow backward forward follow learn visual"
).split()
LABELS = [*KEYWORDS, "_silence_", "_unknown_"]
SILENCE, UNKNOWN = LABELS.index("_silence_"), LABELS.index("_unknown_")

ACCENTS = (
    "en",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-rp",
    "en-gb-x-gbcwmd",
    "en-029",
)
TIMBRES = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("f1", "f2", "f3", "f4", "f5"),
    *("Alex", "Andy", "Annie", "Denis", "Diogo", "Gene", "Hugo"),
    *("Jacky", "Lee", "Mario", "Michael", "Mike", "Storm", "Tweaky", "adam", "anika"),
    *("antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "croak", "david"),
    *("ed", "edward", "grandma", "grandpa", "gustave", "iven", "john", "kaukovalta"),
    *("klatt", "klatt2", "klatt3", "klatt4", "linda", "marcelo", "max", "michel"),
    *("norbert", "pablo", "paul", "quincy", "rob", "robert", "sandro", "steph"),
    *("steph2", "steph3", "travis", "victor", "zac"),
)
"""Of the synthesizer. Voices are all pairs of an accent and one of these."""

RATE = 16_000
"""Hertz, and samples in a clip."""

LOUDEST = 0.5
"""Of the largest sample that a file can hold."""

_SIZES = {
    "train": flags.DEFINE_integer("train", 16_000, "Clips to train on.", lower_bound=1),
    "validation": flags.DEFINE_integer("validation", 3_000, "To choose by."),
    "test": flags.DEFINE_integer("test", 6_000, "To report on."),
}
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder.", required=True)
_NOISE = flags.DEFINE_multi_float(
    "noise", [-6.0, 12.0], "Least and largest ratio of word to noise, dB."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the voices, the words and the noise.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Clips made at a time.")

Samples = npt.NDArray[np.float64]


def said(word: str, voice: str, pitch: int, speed: int) -> Samples:
    """Returns a word as the synthesizer says it, at 16 kHz, without the silence."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-p", str(pitch), "-s", str(speed)]
    sound = subprocess.run([*command, word], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(sound)) as file:
        rate = file.getframerate()
        # Its header is written before the length is known.
        samples = np.frombuffer(file.readframes(2**24), np.int16)
    common = np.gcd(rate, RATE)
    resampled = scipy.signal.resample_poly(
        samples.astype(np.float64), RATE // common, rate // common
    )
    loud = np.flatnonzero(np.abs(resampled) > 0.01 * np.abs(resampled).max(initial=1))
    return resampled[loud[0] : loud[-1] + 1] if len(loud) else resampled[:1]


def placed(sound: Samples, random: np.random.Generator) -> Samples:
    """Returns a second with a sound somewhere in it, of power 1 where it is heard."""
    sound = sound[:RATE]
    sound = sound / max(np.sqrt(np.mean(sound**2)), 1e-9)
    clip = np.zeros(RATE)
    begin = int(random.integers(RATE - len(sound) + 1))
    clip[begin : begin + len(sound)] = sound
    return clip


def noise(random: np.random.Generator) -> Samples:
    """Returns a second of noise of power 1 whose spectrum falls by chance."""
    spectrum = np.fft.rfft(random.normal(size=RATE))
    falls = np.maximum(np.arange(len(spectrum)), 1.0) ** -random.uniform(0.0, 1.2)
    made = np.fft.irfft(spectrum * falls, RATE)
    return made / np.sqrt(np.mean(made**2))


def clip(label: int, voices: Sequence[str], seed: Sequence[int]) -> npt.NDArray:
    """Returns one clip, int16 of shape `(16000,)`."""
    random = np.random.default_rng(seed)

    def word(words: Sequence[str]) -> Samples:
        voice = str(random.choice(voices))
        pitch, speed = int(random.integers(10, 90)), int(random.integers(120, 260))
        return placed(said(str(random.choice(words)), voice, pitch, speed), random)

    least, largest = _NOISE.value
    behind = noise(random)
    if random.random() < 0.3:
        # Somebody else speaks, too.
        behind = (behind + random.uniform(0.3, 1.0) * word(OTHERS)) / np.sqrt(2)
    if label == SILENCE:
        mixed = behind
    else:
        in_front = word(OTHERS if label == UNKNOWN else [LABELS[label]])
        mixed = in_front + behind * 10 ** (-random.uniform(least, largest) / 20)
    loudness = LOUDEST * random.uniform(0.2, 1.0) * np.iinfo(np.int16).max
    return np.round(mixed / np.abs(mixed).max() * loudness).astype(np.int16)


def voices_of() -> dict[str, list[str]]:
    """Returns the voices of each split: seven, one and two of ten timbres."""
    random = np.random.default_rng(_SEED.value)
    timbres = random.permutation(TIMBRES)
    first, second = int(0.7 * len(timbres)), int(0.8 * len(timbres))
    parts = {
        "train": timbres[:first],
        "validation": timbres[first:second],
        "test": timbres[second:],
    }
    return {
        split: [
            f"{accent}+{timbre}" for accent, timbre in itertools.product(ACCENTS, part)
        ]
        for split, part in parts.items()
    }


def clips(split: str, voices: Sequence[str]) -> Iterator[dict[str, npt.NDArray]]:
    """Yields the clips of a split, labels in turn."""
    number = list(_SIZES).index(split)
    size = _SIZES[split].value

    def made(index: int) -> npt.NDArray:
        return clip(index % len(LABELS), voices, (_SEED.value, number, index))

    with futures.ThreadPoolExecutor(_WORKERS.value) as pool:
        for index, samples in enumerate(pool.map(made, range(size))):
            yield {"audio": samples, "label": np.int64(index % len(LABELS))}
            if index % 1000 == 999:
                print(f"{split}: {index + 1} of {size}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Writes the data set."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if len(_NOISE.value) != 2:
        raise app.UsageError(f"--noise takes two values. Received: {_NOISE.value}")
    if shutil.which("espeak-ng") is None:
        raise SystemExit("The synthesizer espeak-ng was not found: install it.")
    signature = {
        "audio": tf.TensorSpec((None,), tf.int16),
        "label": tf.TensorSpec((), tf.int64),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="spoken_words",
        version="1.0.0",
        data_dir=os.path.expanduser(_DATA_DIR.value),
        description=__doc__,
        disable_shuffling=False,
        features=tfds.features.FeaturesDict(
            {
                "audio": tfds.features.Audio(dtype=np.int16, sample_rate=RATE),
                "label": tfds.features.ClassLabel(names=LABELS),
            }
        ),
        split_datasets={
            split: tf.data.Dataset.from_generator(
                lambda split=split, voices=voices: clips(split, voices),
                output_signature=signature,
            ).apply(tf.data.experimental.assert_cardinality(_SIZES[split].value))
            for split, voices in voices_of().items()
        },
    )
    print("prepared in", os.path.join(_DATA_DIR.value, "spoken_words"))


if __name__ == "__main__":
    app.run(main)
