"""What is in a TFLite file, of any converter: `python -m keras_sq.inspect`.

Nothing in a file is trusted. `reader.py` runs `worker.py`, which reads the file in a
process of its own: its tensors and operators (`tensors.py`), what the weights are made
of (`weights.py`), and the result as data (`contents.py`). `table.py` prints it.
"""
