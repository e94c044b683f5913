"""A session on an accelerator: where it reads and writes, and when it ends.

Also the images, and how much of them a rehearsal takes.
"""

import dataclasses
import pathlib
import threading
import time

import augmentation
import numpy as np
from augmentation import Images
from row import Row

REHEARSAL_SCALE = 0.01
"""Below this scale an epoch has `REHEARSAL_STEPS` steps, and the test few images."""

REHEARSAL_STEPS = 4
REHEARSAL_TESTS = 500

ENDS = threading.Event()
"""Set when the session shall end as if its time were up."""


@dataclasses.dataclass(frozen=True)
class Session:
    """How jobs are trained, and where they write.

    Attributes:
        data: Folder of the images.
        out: Folder of the results.
        state: Folder of the states.
        deadline: Time (`time.time()`) at which everything must be written.
        scale: Factor on the length of the training; below 1 it is a rehearsal.
        save_every: Seconds between two states.
        test_every: Epochs between two tests.
        together: How many runs train at once, and how, for the results.
        steps_per_call: Int, or 0 for what the device takes best.
    """

    data: pathlib.Path
    out: pathlib.Path
    state: pathlib.Path
    deadline: float
    scale: float = 1.0
    save_every: float = 60.0
    test_every: int = 10
    together: str = "1"
    steps_per_call: int = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 once `ENDS` is set."""
        return 0.0 if ENDS.is_set() else self.deadline - time.time()

    def result_path(self, row: Row, seed: int) -> pathlib.Path:
        """Returns where the result of a run is written."""
        return self.out / "runs" / f"{row.name}-seed{seed}.json"

    def kept_path(self, row: Row, seed: int) -> pathlib.Path:
        """Returns where the result of a run that has ended is kept with the states."""
        return self.state / "ended" / f"{row.name}-seed{seed}-scale{self.scale:g}.json"

    def state_path(self, row: Row, seed: int) -> pathlib.Path:
        """Returns where the state of a run is."""
        return self.state / f"{row.name}-seed{seed}-scale{self.scale:g}.npz"


def load_images(folder: pathlib.Path, scale: float) -> Images:
    """Reads the images, to be put on the device.

    Args:
        folder: With `{train,test}_{images,labels}.npy`.
        scale: Of a rehearsal: it tests on few images.

    Raises:
        ValueError: If a file is missing, damaged or of something else, in one line.
    """
    arrays = []
    for part in ("train", "test"):
        for what, dimensions in (("images", 4), ("labels", 1)):
            path = folder / f"{part}_{what}.npy"
            try:
                array = np.load(path, allow_pickle=False)
            except FileNotFoundError as error:
                raise ValueError(
                    f"Data file {path} is missing: unpack all pieces of the kit."
                ) from error
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"Data file {path} is damaged: unpack the pieces again."
                ) from error
            if array.dtype != np.uint8 or array.ndim != dimensions or not len(array):
                raise ValueError(
                    f"Data file {path} must hold uint8 {what}. Received: "
                    f"{array.dtype} of shape {array.shape}."
                )
            arrays.append(array)
        if len(arrays[-1]) != len(arrays[-2]):
            raise ValueError(f"The {part} images of {folder} and labels do not match.")
    train, train_labels, test, test_labels = arrays
    if scale < REHEARSAL_SCALE:
        test, test_labels = test[:REHEARSAL_TESTS], test_labels[:REHEARSAL_TESTS]
    return Images(
        train,
        train_labels.astype("int32"),
        test,
        test_labels.astype("int32"),
        *augmentation.channel_statistics(train),
    )


def train_examples(row: Row, images: Images, scale: float) -> int:
    """Returns how many training images the epochs of a run have."""
    examples = len(images.train)
    if scale < REHEARSAL_SCALE:
        return min(examples, REHEARSAL_STEPS * row.batch_size)
    return examples
