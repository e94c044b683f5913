"""Packed files: TFLite files that are compressed until they are used.

`keras_sq.pack_file` and `keras_sq.unpack_file` (`files.py`), and the command `python -m
keras_sq.pack` (`command.py`). A packed file has the codes of the kernels close to their
entropy, and unpacks to the same bytes. The parts, from the top down:

- `container.py`: the format, and Python's decoder;
- `buffers.py`: where the constants of a file lie; `segments.py`: how each is coded;
- `matches.py`: the rest of the file; `entropy.py`: the coder; `tables.py`: frequencies;
- `decoders/`: the decoders for apps, a header of C++11 and a class of Java. They know
  nothing of TFLite.

Design note: **rejected alternatives.** DEFLATE of the whole file takes a sixth more,
and its decoder needs zlib. A coder that learns while it decodes would save the tables,
but NumPy is fast only where symbols do not depend on each other.
"""
