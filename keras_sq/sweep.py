"""The command `python -m keras_sq.sweep`: see `keras_sq/experiments/sweep.py`."""

from absl import app, flags

from keras_sq.experiments import sweep
from keras_sq.experiments.sweep import define_flags

if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(sweep.main_of_process)
