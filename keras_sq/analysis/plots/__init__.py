"""Pictures. Needs matplotlib: `pip install "keras-sq[plots]"`.

Every function returns a `matplotlib.figure.Figure` and shows nothing:
`figure.savefig(path)`, or let a notebook display it. matplotlib is imported when a
figure is made, and without `pyplot`, so that no window system or global state is
touched. One picture a file.

| picture | of |
|---|---|
| `training_plot` | runs of `keras_sq.train`: loss, ratio, accuracy over the epochs |
| `ratio_plot` | a `QuantizationHistory`: ratio, loss and flips over the steps |
| `error_plot` | a `QuantizationHistory`: quantization error of each kernel |
| `mask_plot` | a `QuantizationHistory`: which filters of a kernel are quantized when |
| `histogram_plot` | two models: the kernels before and after |
| `size_plot` | runs of `keras_sq.train`: accuracy against the size of the file |
"""

from keras_sq.analysis.plots.errors import error_plot as error_plot
from keras_sq.analysis.plots.histograms import histogram_plot as histogram_plot
from keras_sq.analysis.plots.masks import mask_plot as mask_plot
from keras_sq.analysis.plots.ratios import ratio_plot as ratio_plot
from keras_sq.analysis.plots.sizes import size_plot as size_plot
from keras_sq.analysis.plots.training import training_plot as training_plot

__all__ = [
    "error_plot",
    "histogram_plot",
    "mask_plot",
    "ratio_plot",
    "size_plot",
    "training_plot",
]
