"""Pictures show the numbers they were given, and say what these are."""

import functools
import json
import sys

import keras
import numpy as np
import pytest
from backends import BACKEND

import keras_sq
from keras_sq import plots
from keras_sq.analysis import training_report

pytest.importorskip("matplotlib")


def history(runs=("float", "direct", "sq"), epochs=4):
    """Returns rows as a training run writes them."""
    return [
        {
            "run": run,
            "epoch": epoch,
            "ratio": None if run == "float" else min(1.0, 0.5 + 0.25 * epoch),
            "learning_rate": 0.1 / (epoch + 1),
            "loss": 1.0 / (epoch + 1),
            "accuracy": 0.8,
            "val_loss": 1.1 / (epoch + 1),
            "val_accuracy": 0.5 + 0.1 * epoch,
        }
        for run in runs
        for epoch in range(epochs)
    ]


def test_plot_shows_loss_ratio_and_accuracy(tmp_path):
    figure = plots.training_plot(history())
    loss, ratio, accuracy = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 3]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(loss.lines[0].get_ydata()) == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert list(ratio.lines[-1].get_ydata()) == [50, 75, 100, 100]
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([50, 60, 70, 80])
    assert "nats" in loss.get_ylabel()
    assert "%" in ratio.get_ylabel() and "%" in accuracy.get_ylabel()
    assert accuracy.get_xlabel() == "epoch"
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_plot_of_many_runs_tells_them_apart():
    runs = ("float", *(f"method-{number}" for number in range(8)))
    figure = plots.training_plot(history(runs))
    loss, ratio, accuracy = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [9, 8, 9]
    styles = {(line.get_color(), line.get_linestyle()) for line in accuracy.lines}
    assert len(styles) == len(runs)
    # Beside the curves, not over them.
    assert accuracy.get_legend() is None
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(runs)


def test_plot_reads_a_history_file(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(training_report.history_csv(history(("sq",), epochs=1)))
    figure = plots.training_plot(path)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == [
        "quantized with SQ"
    ]


def test_history_file_keeps_every_digit(tmp_path):
    rows = history()
    rows[0]["loss"] = 0.1 + 0.2
    path = tmp_path / "history.csv"
    path.write_text(training_report.history_csv(rows))
    assert training_report.read_history(path) == rows


def test_file_that_is_no_history_raises(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a training history"):
        plots.training_plot(path)


def test_empty_history_raises():
    with pytest.raises(ValueError, match="at least one epoch"):
        plots.training_plot([])


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "keras-sq\[plots\]"'):
        plots.training_plot(history())


# Pictures of a recorded training.


@functools.cache
def recorded(layers=2, granularity="filter", masks="dense0", schedule="exponential"):
    """Returns a model before and after a short training, and its history."""
    model = keras.Sequential(
        [keras.Input((6,))]
        + [keras.layers.Dense(5, name=f"dense{n}") for n in range(layers)]
    )
    quantized = keras_sq.quantize_model(
        model, "ternary", granularity=granularity, overrides={}
    )
    quantized.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    history = keras_sq.callbacks.QuantizationHistory(every=2, masks=masks)
    callbacks = [keras_sq.callbacks.StochasticQuantization(schedule), history]
    x, y = np.ones((32, 6), "float32"), np.ones((32, 5), "float32")
    quantized.fit(
        *(x, y),
        batch_size=4,
        epochs=2,
        validation_data=(x, y),
        callbacks=callbacks,
        verbose=0,
    )
    return model, quantized, history


@pytest.fixture(scope="module")
def training():
    return recorded()


def drawn(figure, tmp_path):
    """Draws a figure, which must be of README's width, and returns its texts."""
    path = tmp_path / "picture.png"
    figure.savefig(path)
    assert path.stat().st_size > 10_000
    width = figure.get_size_inches()[0] * figure.dpi
    assert 700 <= width <= 900
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text()]
    # Points: at 700 of 840 pixels of 120 to the inch, 8 points are 11 pixels.
    assert min(text.get_fontsize() for text in texts) >= 8
    return {text.get_text() for text in texts}


def test_ratio_plot_shows_ratio_loss_flips_and_stages(training, tmp_path):
    _, _, history = training
    figure = plots.ratio_plot(history)
    ratio, loss, flips = figure.axes
    assert list(ratio.lines[0].get_ydata()) == list(100 * history.ratio)
    assert list(loss.lines[0].get_ydata()) == list(history.loss)
    assert list(loss.lines[1].get_xdata()) == [8, 16]
    per_million = 1e6 * history.flips.sum(axis=1) / 55
    assert list(flips.lines[0].get_ydata()) == pytest.approx(list(per_million))
    marks = [line.get_xdata()[0] for line in ratio.lines[1:]]
    assert marks == [4, 8, 12]
    texts = drawn(figure, tmp_path)
    assert {"stage 1", "stage 4", "optimizer step", "loss"} <= texts
    assert "%" in ratio.get_ylabel() and "per million" in flips.get_ylabel()


def test_notebook_displays_a_picture_without_pyplot(training):
    # What IPython asks an object for.
    content = plots.ratio_plot(training[2])._repr_png_()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_error_plot_has_a_line_for_each_of_few_kernels(training, tmp_path):
    _, _, history = training
    figure = plots.error_plot(history)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["dense0", "dense1"]
    np.testing.assert_array_equal(lines[1].get_ydata(), 100 * history.errors[:, 1])
    # Told apart without colours.
    assert len({(x.get_linestyle(), x.get_marker()) for x in lines}) == 2
    assert {"optimizer step", "dense1"} <= drawn(figure, tmp_path)
    assert "%" in axes.get_ylabel()


def test_error_plot_of_many_kernels_is_a_map_with_a_row_each(tmp_path):
    _, _, history = recorded(layers=9)
    figure = plots.error_plot(history)
    axes, bar = figure.axes
    assert [x.get_text() for x in axes.get_yticklabels()] == [
        f"dense{n}" for n in range(9)
    ]
    shown = axes.collections[0].get_array().reshape(9, -1)
    np.testing.assert_allclose(shown, 100 * history.errors.T)
    assert "%" in bar.get_ylabel()
    assert "optimizer step" in drawn(figure, tmp_path)


@pytest.mark.parametrize("granularity", ["filter", "element"])
def test_mask_plot_shows_filters_over_time(granularity, tmp_path):
    _, _, history = recorded(granularity=granularity)
    figure = plots.mask_plot(history, "dense0")
    axes = figure.axes[0]
    shown = axes.collections[0].get_array().reshape(5, -1)
    np.testing.assert_allclose(shown, history.masks["dense0/kernel"].T)
    texts = drawn(figure, tmp_path)
    assert "Which filters of dense0/kernel are quantized" in texts
    if granularity == "filter":
        assert {"quantized", "float", "filter", "optimizer step"} <= texts
    else:
        assert "quantized weights of the filter (%)" in texts


def test_mask_plot_of_what_was_not_kept_raises(training):
    _, _, history = training
    with pytest.raises(ValueError, match=r"`kernel` must be one of 'dense0/kernel'"):
        plots.mask_plot(history, "dense1")
    _, _, without = recorded(masks=())
    with pytest.raises(ValueError, match=r"QuantizationHistory\(masks="):
        plots.mask_plot(without)


def test_histograms_hold_all_weights_before_and_after(training, tmp_path):
    before, after, _ = training
    figure = plots.histogram_plot(before, after)
    assert [axes.get_title() for axes in figure.axes] == ["dense0", "dense1"]
    for axes in figure.axes:
        heights = [patch.get_data().values.sum() for patch in axes.patches[-2:]]
        assert heights == pytest.approx([100, 100], abs=8)  # But for outliers.
    texts = drawn(figure, tmp_path)
    assert {"before, float", "after, latent", "after, quantized", "weight"} <= texts
    assert "weights (%)" in texts
    one = plots.histogram_plot(after, after, "dense1")
    assert [axes.get_title() for axes in one.axes] == ["dense1"]


def test_histogram_has_one_label_for_neighbouring_heaps():
    rng = np.random.default_rng(0)
    layer = keras.layers.Dense(64, name="dense")
    model = keras.Sequential([keras.Input((1000,)), layer])
    # Filters of two sizes, whose scales lie in bins side by side.
    sizes = np.where(np.arange(64) % 2, 0.0965, 0.1065) / np.sqrt(2 / np.pi)
    layer.kernel.assign(rng.normal(0, sizes, (1000, 64)))
    after = keras_sq.quantize_model(model, "binary", overrides={})
    (axes,) = plots.histogram_plot(model, after).axes
    labels = [text.get_text() for text in axes.texts]
    assert len(labels) == 2
    assert sum(float(label.removesuffix(" %")) for label in labels) == pytest.approx(
        100, abs=2
    )


def test_histograms_of_models_that_do_not_fit_raise(training):
    before, after, _ = training
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="dense0")])
    with pytest.raises(ValueError, match=r"no kernel of 30 weights at 'dense0/kernel'"):
        plots.histogram_plot(other, after)
    with pytest.raises(ValueError, match=r"'dense9'.*no quantized layer"):
        plots.histogram_plot(before, after, "dense9")
    with pytest.raises(ValueError, match="has no quantized layer"):
        plots.histogram_plot(before, before)


@pytest.mark.parametrize("plot", [plots.ratio_plot, plots.error_plot, plots.mask_plot])
def test_history_without_records_raises(plot):
    with pytest.raises(ValueError, match="at least one record"):
        plot(keras_sq.callbacks.QuantizationHistory())
    with pytest.raises(TypeError, match="must be a `keras_sq.callbacks"):
        plot([1, 2])


# Accuracy against size.


def run_folder(path, accuracy=0.9, quantizer="ternary", model="digits_cnn"):
    """Writes what a run of `keras_sq.train` leaves."""
    path.mkdir(parents=True)
    config = {"preset": None, "quantizer": quantizer, "model": model}
    networks = {
        name: {"tflite_bytes": size, "test_accuracy": accuracy}
        for name, size in (("float", 100_000), ("sq", 16_000))
    }
    text = json.dumps({"config": {**config, "dataset": "x"}, "networks": networks})
    (path / "results.json").write_text(text)
    return path


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_size_plot_shows_each_network_of_each_run(tmp_path):
    runs = [
        run_folder(tmp_path / "a"),
        run_folder(tmp_path / "b", quantizer="binary") / "results.json",
    ]
    figure = plots.size_plot(runs)
    (axes,) = figure.axes
    assert labels(figure) == [
        "float, ternary",
        "sq, ternary",
        "float, binary",
        "sq, binary",
    ]
    points = [container.lines[0] for container in axes.containers]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [
        (100.0, 90.0),
        (16.0, 90.0),
    ] * 2
    assert len({(p.get_color(), p.get_marker()) for p in points}) == 4
    texts = drawn(figure, tmp_path)
    assert {"TFLite file (kB)", "test accuracy (%)"} <= texts
    assert labels(plots.size_plot(runs, names=["one", "two"]))[0] == "float, one"


def test_size_plot_tells_fourteen_networks_apart_without_colours(tmp_path):
    runs = [run_folder(tmp_path / f"{n}", quantizer=f"uniform-{n}") for n in range(7)]
    (axes,) = plots.size_plot(runs).axes
    points = [container.lines[0] for container in axes.containers]
    hollow = [p.get_markerfacecolor() == "none" for p in points]
    markers = [p.get_marker() for p in points]
    assert len(set(zip(markers, hollow, strict=True))) == 14


def test_size_plot_takes_seeds_together(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9)):
        run_folder(tmp_path / f"seed-{seed}", accuracy)
    figure = plots.size_plot(tmp_path)
    assert labels(figure) == ["float", "sq"]
    point, caps, bars = figure.axes[0].containers[1].lines
    assert point.get_ydata()[0] == pytest.approx(85)
    spread = bars[0].get_segments()[0][:, 1]
    assert list(spread) == pytest.approx([85 - 7.0710678, 85 + 7.0710678])


def test_size_plot_without_results_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="no 'results.json' in"):
        plots.size_plot(tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        plots.size_plot([])
    with pytest.raises(ValueError, match="2 names for 1 runs"):
        plots.size_plot([tmp_path], names=["a", "b"])
    (tmp_path / "results.json").write_text('{"config": {}, "networks": []}')
    with pytest.raises(ValueError, match="holds no results of `keras_sq.train`"):
        plots.size_plot(tmp_path)
