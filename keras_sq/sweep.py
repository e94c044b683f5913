"""The command `python -m keras_sq.sweep`: see `keras_sq/experiments/sweep.py`."""

from keras_sq.core import commands
from keras_sq.experiments import sweep

if __name__ == "__main__":
    commands.start(sweep.PROGRAM, sweep.define_flags, sweep.main_of_process)
