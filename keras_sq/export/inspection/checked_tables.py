"""Reads the tables of a flatbuffer that nobody vouched for.

Every offset is checked before it is followed, so a file that is cut off, has
flipped bits or is something else altogether gives a `ValueError`, in bounded
time and memory. Which fields a TFLite file has is in `file_structure.py`.

Design note: **why not the generated classes, behind an interpreter's check.**
Python's flatbuffers package follows offsets as they come. The interpreters
verify a file in C++ when they are made, and well (6,000 damaged files did not
bring LiteRT 2.3 down), but they refuse with the same words a damaged file and a
sound one that they only cannot run, for an operator that is newer than they
are, and a file would be readable only where one is installed. The fields that
matter are few; this takes a page.
"""

import struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MAX_STEPS = 2_000_000
"""Most tables and numbers to read of one file; sound files have fewer.

Tables may be shared, so that a small file could claim to hold billions. In a
sound file each takes four bytes and more, hence also one for each byte at most.
"""

_UINT16 = struct.Struct("<H")
_UINT32 = struct.Struct("<I")
_INT32 = struct.Struct("<i")


class CheckedFile:
    """The bytes of a flatbuffer.

    Args:
        content: All of the file.

    Attributes:
        content: The same.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._steps_left = min(MAX_STEPS, len(content))

    def root(self) -> "CheckedTable":
        """Returns the table that all others hang on.

        Raises:
            ValueError: As everything here, if the file is damaged.
        """
        return CheckedTable(self, self.number(_UINT32, 0))

    def spend(self, steps: int) -> None:
        """Counts what was read.

        Raises:
            ValueError: If it is more than a sound file has.
        """
        self._steps_left -= steps
        if self._steps_left < 0:
            raise ValueError("it is damaged: it has more entries than it has room for")

    def number(self, form: struct.Struct, place: int) -> int:
        """Returns the number at a place."""
        self.check(place, form.size)
        return int(form.unpack_from(self.content, place)[0])

    def check(self, place: int, size: int) -> None:
        """Refuses a place outside of the file."""
        if place < 0 or place + size > len(self.content):
            raise ValueError(
                f"it is damaged or cut off: it refers to byte {place + size - 1:,} of "
                f"{len(self.content):,}"
            )

    def bytes_at(self, place: int, size: int) -> Array:
        """Returns bytes as a uint8 array, without a copy."""
        self.check(place, size)
        return np.frombuffer(self.content, np.uint8, size, place)


class CheckedTable:
    """One table.

    Args:
        file: Where it is in.
        place: Where it starts.
    """

    def __init__(self, file: CheckedFile, place: int) -> None:
        file.spend(1)
        self._file = file
        self._place = place
        directory = place - file.number(_INT32, place)
        size = file.number(_UINT16, directory)
        file.check(directory, size)
        if size < 4 or size % 2:
            raise ValueError(f"it is damaged: there is no table at byte {place:,}")
        self._fields = struct.unpack_from(
            f"<{size // 2 - 2}H", file.content, directory + 4
        )

    def number(self, field: int, form: str = "i", default: int = 0) -> int:
        """Returns a number.

        Args:
            field: Its number in the schema.
            form: Its type, a letter of `struct`.
            default: What stands for a field left out.
        """
        place = self._find(field)
        if place is None:
            return default
        return self._file.number(struct.Struct(f"<{form}"), place)

    def text(self, field: int) -> str:
        """Returns a string, empty if left out; wrong UTF-8 is replaced."""
        characters = self.vector(field, "u1")
        self._file.spend(len(characters) // 64)
        return bytes(characters).decode("utf-8", "replace")

    def vector(self, field: int, dtype: str) -> Array:
        """Returns numbers as an array without a copy, empty if left out.

        Args:
            field: Its number in the schema.
            dtype: Of a number, such as `"i4"`.
        """
        return self._file.bytes_at(*self.extent(field, dtype)).view(f"<{dtype}")

    def extent(self, field: int, dtype: str = "u1") -> tuple[int, int]:
        """Returns place and size, in bytes, of a vector of numbers."""
        place = self._follow(field)
        if place is None:
            return 0, 0
        size = self._file.number(_UINT32, place) * np.dtype(dtype).itemsize
        self._file.check(place + 4, size)
        return place + 4, size

    def integers(self, field: int) -> tuple[int, ...]:
        """Returns a vector of int32, to be walked through."""
        values = self.vector(field, "i4")
        self._file.spend(len(values))
        return tuple(values.tolist())

    def table(self, field: int) -> "CheckedTable | None":
        """Returns another table, `None` if left out."""
        place = self._follow(field)
        return None if place is None else CheckedTable(self._file, place)

    def tables(self, field: int) -> list["CheckedTable"]:
        """Returns a vector of other tables, empty if left out."""
        place, size = self.extent(field, "u4")
        offsets = self._file.bytes_at(place, size).view("<u4")
        self._file.spend(len(offsets))
        return [
            CheckedTable(self._file, place + 4 * index + offset)
            for index, offset in enumerate(offsets.tolist())
        ]

    def _find(self, field: int) -> int | None:
        """Returns where a field is."""
        if field >= len(self._fields) or not self._fields[field]:
            return None
        return self._place + int(self._fields[field])

    def _follow(self, field: int) -> int | None:
        """Returns where what a field refers to is."""
        place = self._find(field)
        return None if place is None else place + self._file.number(_UINT32, place)
