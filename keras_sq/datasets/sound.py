"""Sound as features: what the keyword spotter of MLPerf Tiny is fed.

One second at 16 kHz becomes 49 windows of 30 ms, 20 ms apart, with the first 10
cepstral coefficients of each.

References:
    - [mlcommons/tiny](https://github.com/mlcommons/tiny), keyword spotting,
      `get_dataset.py`: the same steps and constants. Its background noise is not in
      the prepared data, and not added.
"""

import tensorflow as tf

from keras_sq.core.types import Tensor

SAMPLE_RATE = 16_000
"""Hertz; also the length of a clip in samples."""

WINDOW = 480
"""Samples, 30 ms."""

STRIDE = 320
"""Samples, 20 ms."""

MEL_BINS = 40
MEL_RANGE = (20.0, 4000.0)
"""Hertz."""

COEFFICIENTS = 10

SHAPE = (1 + (SAMPLE_RATE - WINDOW) // STRIDE, COEFFICIENTS, 1)
"""Of the features of one clip: (windows, coefficients, 1)."""


def mfcc(samples: Tensor) -> Tensor:
    """Returns the features of a clip.

    Args:
        samples: Integer tensor `(length,)` at 16 kHz. What is longer than a second
            is cut off, what is shorter filled with silence. Its largest sample
            becomes 1, as in the reference.

    Returns:
        Float32 tensor of shape `SHAPE`.

    Example:
        >>> mfcc(np.arange(9000) % 100).shape
        TensorShape([49, 10, 1])
    """
    clip = tf.cast(samples, tf.float32)[:SAMPLE_RATE]
    # Silence stays silence.
    clip /= tf.maximum(tf.reduce_max(clip), 1.0)
    clip = tf.pad(clip, [[0, SAMPLE_RATE - tf.shape(clip)[0]]])
    clip = tf.ensure_shape(clip, (SAMPLE_RATE,))
    spectrum = tf.abs(tf.signal.stft(clip, WINDOW, STRIDE))
    to_mel = tf.signal.linear_to_mel_weight_matrix(
        MEL_BINS, spectrum.shape[-1], SAMPLE_RATE, *MEL_RANGE
    )
    logarithm = tf.math.log(tf.matmul(spectrum, to_mel) + 1e-6)
    cepstrum = tf.signal.mfccs_from_log_mel_spectrograms(logarithm)
    return cepstrum[:, :COEFFICIENTS, None]
