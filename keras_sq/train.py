"""The command `python -m keras_sq.train`: see `keras_sq/experiments/train.py`."""

from absl import app, flags

from keras_sq.experiments import train
from keras_sq.experiments.flags import define_flags

if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(train.main_of_process)
