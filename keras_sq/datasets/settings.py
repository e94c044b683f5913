"""What is done with a data set where nothing else is asked for: a table.

References:
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code: CIFAR is
      mirrored and shifted by up to 4 pixels; ImageNet mirrored and cropped to 224
      pixels, of images whose short side has 256
"""

import dataclasses

DIGITS = "digits"
"""Name of the data set inside the package."""

CROPS = ("side", "area")
"""`"side"`: a random square of 7/8 of the short side (the SQ paper's code: 224 of 256
pixels). `"area"`: 8 to 100 % of the area, stretched to a square (LQ-Nets' code, less
its changes of colours)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one data set is read.

    Attributes:
        augmented: Whether training examples are, if that is not said.
        mirrored: Whether augmentation mirrors images: not digits and letters.
        test: Split that results are reported on; `None` is `"test"`, or
            `"validation"` if there is no other.
        validation_fraction: Part of `train` that is held out where no split is left
            for it.
        image_size: Height and width (pixels) that images are brought to; `None`: as
            they are, or, if they differ, `DEFAULT_IMAGE_SIZE`.
        mean: Of pixel values, per channel; `None`: of the training examples.
        std: Likewise.
    """

    augmented: bool = False
    mirrored: bool = True
    test: str | None = None
    validation_fraction: float = 0.1
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


DEFAULT_IMAGE_SIZE = 224
"""Pixels, of data sets with images of many sizes."""

SETTINGS = {
    "digits": Settings(mirrored=False),
    "cifar10": Settings(augmented=True),
    "cifar100": Settings(augmented=True),
    "mnist": Settings(mirrored=False),
    "emnist": Settings(mirrored=False),
    "kmnist": Settings(mirrored=False),
    "svhn_cropped": Settings(mirrored=False),
    "imagenet2012": Settings(
        augmented=True,
        # Its `test` has no labels. The 50,000 that papers report on are the test.
        test="validation",
        validation_fraction=0.02,
        image_size=224,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
}
"""Data set -> settings. Those not here have the defaults."""

MADE_BY = {"spoken_words": "python tests/benchmarks/spoken_words.py --data_dir=FOLDER"}
"""Data sets of this project's own, which TFDS knows only where they were made."""


def base_name(name: str) -> str:
    """Returns the name without configuration and version."""
    return name.split("/")[0].split(":")[0]


def settings_of(name: str) -> Settings:
    """Returns how a data set is read."""
    return SETTINGS.get(base_name(name), Settings())


def is_augmented(name: str) -> bool:
    """Whether training examples of a data set are augmented if that is not said.

    Example:
        >>> is_augmented("cifar10/3.0.2"), is_augmented("mnist")
        (True, False)
    """
    return settings_of(name).augmented
