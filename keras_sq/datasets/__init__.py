"""Data to classify: read through TFDS, from memory or files, fed in order.

`load("digits")` needs no network and no file but the package's own; any
other name is a TensorFlow Datasets name that has been prepared in a folder
(or is downloaded when that is asked for). What comes back is standardized
with the statistics of the training split, and its order and augmentation
depend on nothing but the seed and the number of the epoch.

What lives here: `load` (`loading.py`), what is known of single data sets
(`settings.py`), the digits (`digits.py`), reading of what TFDS has prepared
(`reading.py`), the batches from memory (`batches.py`) and from files
(`streaming.py`), what is done with pixels (`images.py`) and sound (`sound.py`).
"""

from keras_sq.datasets.batches import Dataset as Dataset
from keras_sq.datasets.digits import DIGITS as DIGITS
from keras_sq.datasets.loading import load as load
from keras_sq.datasets.settings import is_augmented as is_augmented
