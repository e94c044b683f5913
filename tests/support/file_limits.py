"""A full disk, for tests: files that cannot grow beyond a size."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets writes beyond `num_bytes` of a file fail with `EFBIG`.

    What a full disk does with `ENOSPC`, in all code of the process, C libraries too.
    (Python ignores the signal that comes with it.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
