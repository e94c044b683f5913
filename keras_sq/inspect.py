"""The command `python -m keras_sq.inspect`: see `export/inspection/command.py`."""

from keras_sq.core import command_line
from keras_sq.export.inspection import command

if __name__ == "__main__":
    command_line.run(command.PROGRAM, command.define_flags, command.main)
