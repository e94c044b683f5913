"""How long TFLite files take on a machine: `python -m keras_sq.benchmark`.

`command.py` is the command line. `processes.py` starts a process of `worker.py` for
each file, and lets the files take turns; `results.py` makes data and a table of their
times. `program.py` writes all of this as a program of one file, for devices.

Design notes: **each file is in a process of its own**, which measures its memory, and
may crash without ending the others. **Nothing else of this package is imported here**,
and no absl, for a device need not have them; importing `keras_sq` imports Keras.
"""
