"""What is in a TFLite file, of any converter: `python -m keras_sq.inspect`.

Nothing in a file is trusted. What lives here: the tables of a flatbuffer with every
index checked (`checked_tables.py`, `file_structure.py`), how weights are made from
constants and what values they have (`constant_values.py`, `constant_rules.py`), the
result (`contents.py`), making it (`reader.py`) and printing it (`table.py`).
"""
