"""The command `python -m keras_sq.train`: see `keras_sq/experiments/train.py`."""

from keras_sq.core import commands
from keras_sq.experiments import train
from keras_sq.experiments.flags import define_flags

if __name__ == "__main__":
    commands.start(train.PROGRAM, define_flags, train.main_of_process)
