"""The command `python -m keras_sq.benchmark`: see `export/benchmark/command.py`."""

import sys

from keras_sq.core import quiet_start
from keras_sq.export.benchmark import command

if __name__ == "__main__":
    quiet_start.end()
    sys.exit(command.main(sys.argv[1:]))
