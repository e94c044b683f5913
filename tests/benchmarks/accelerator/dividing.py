"""Which files go into which piece, and pieces as tar files.

Uses the standard library only.
"""

import io
import math
import tarfile

from pieces import CODE, MIB, KitError

Files = dict[str, bytes]
"""Name -> content."""


def archive(files: Files) -> bytes:
    """Returns a tar file; the same files give the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def divide(code: Files, files: Files, limit: int) -> dict[str, Files]:
    """Divides the files into pieces of about one size.

    The code has a piece of its own, which travels with the first of the others. Where
    the others are cut does not depend on it.

    Args:
        code: Dictionary: name -> content of the code.
        files: Likewise the wheels, labels and images.
        limit: Integer, most bytes of a transfer.

    Returns:
        Dictionary: name of a piece -> its files.

    Raises:
        KitError: If one file alone is larger than the limit.
    """
    # In a tar file, each has a header, and fills its last block.
    sizes = {name: 512 * (1 + math.ceil(len(x) / 512)) for name, x in files.items()}
    reserve = 2 * tarfile.RECORDSIZE + len(archive(code))
    largest = max(sizes, key=sizes.__getitem__)
    if sizes[largest] + reserve > limit:
        raise KitError(
            "Argument `piece_mib` must be at least "
            f"{math.ceil((sizes[largest] + reserve) / MIB)}, for {largest} and the "
            f"code. Received: piece_mib={limit / MIB:g}"
        )
    room = limit - reserve
    number = math.ceil(sum(sizes.values()) / room)
    while True:
        target = min(room, math.ceil(sum(sizes.values()) / number))
        parts: list[Files] = [{}]
        filled = 0
        for name, content in files.items():
            # The last files may not fill a piece more, by a block or two.
            full = filled + sizes[name] > room or filled >= target
            if full and parts[-1]:
                parts.append({})
                filled = 0
            parts[-1][name] = content
            filled += sizes[name]
        if len(parts) <= number:
            break
        number += 1
    numbered = {f"piece-{i}.tar": part for i, part in enumerate(parts, start=1)}
    return {CODE: code, **numbered}
