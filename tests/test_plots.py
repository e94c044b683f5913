"""The training plot."""

import sys

import pytest

from keras_sq import plots, training_report

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
