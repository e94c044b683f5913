"""The command `python -m keras_sq.inspect`: see `export/inspection/command.py`."""

from keras_sq.core import commands
from keras_sq.export.inspection import command

if __name__ == "__main__":
    commands.start(command.PROGRAM, command.define_flags, command.main_of_process)
