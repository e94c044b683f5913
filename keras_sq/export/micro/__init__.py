"""Files for TensorFlow Lite for Microcontrollers.

From an int8 file to one of a few bits a weight, its memory and its C sources. What
lives here: the compression (`compression.py`) and its parts, which kernels
(`lookup_tables.py`), in which pieces (`splitting.py`), within which memory
(`arena_planning.py`); running a file (`runtime.py`, and `worker.py` in a process of
its own), by names (`signature.py`); the C sources (`c_source.py`, `operators.py`).

The package `tflite-micro` is an optional extra, imported where it is used.
"""
