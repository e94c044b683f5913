"""The command `python -m keras_sq.pack`: see `export/packed/command.py`."""

from keras_sq.core import commands
from keras_sq.export.packed import command

if __name__ == "__main__":
    commands.start(command.PROGRAM, command.define_flags, command.main_of_process)
