import xml.etree.ElementTree as ET

import pytest

from rxtone.evaluation.plots import confusion_figure, interval_figure, to_png, to_svg, training_figures

HISTORY = [
    {"step": 1, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 2, "loss": 1.0, "learning_rate": 3e-4},
    {"step": 2, "validation_loss": 1.1, "validation_macro_f1": 0.4},
]


def texts(svg):
    return [text.strip() for text in ET.fromstring(svg).itertext() if text.strip()]


def test_confusion_cells_show_counts_or_shares_of_the_row():
    matrix, labels = [[8, 2], [0, 0]], ["up", "down"]
    counts = texts(to_svg(confusion_figure(matrix, labels, normalised=False), "a", "counts"))
    assert counts == ["up", "down", "predicted", "up", "down", "true", "8", "2", "0", "0"]
    shares = texts(to_svg(confusion_figure(matrix, labels, normalised=True), "a", "shares"))
    assert shares[-4:] == ["80%", "20%", "0%", "0%"]


def test_a_picture_is_plain_themed_and_the_same_every_time():
    def draw():
        return to_svg(interval_figure(["a", "b"], [0.5, 0.4], [[0.4, 0.6], None], "F1"), "cmp", 'one "two" <three>')

    svg = draw()
    assert svg == draw()
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == 'one "two" <three>'
    assert "width" not in root.attrib
    assert "currentColor" in svg
    assert not any(word in svg for word in ("<style", "<script", "<metadata", "<!--", "#1a1d21"))
    ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    assert ids
    assert all(name.startswith("cmp-") for name in ids)
    links = {value[1:] for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")}
    assert links <= set(ids)


def test_labels_are_text_not_markup_nor_mathematics():
    labels = ['$\\frac{1}{0$ id="x"', "<script>alert(1)</script>", "#1a1d21"]
    svg = to_svg(confusion_figure([[1, 0, 0]] * 3, labels, normalised=False), "a", "x")
    assert set(labels) <= set(texts(svg))
    assert "<script" not in svg


def test_training_figures_only_for_what_was_logged():
    assert list(training_figures(HISTORY)) == ["loss", "macro_f1", "learning_rate"]
    assert list(training_figures([{"step": 1, "loss": 2.0}])) == ["loss"]
    assert list(training_figures([{"step": 1, "validation_macro_f1": None, "loss": None}])) == []


def test_validation_points_and_mean_loss_are_drawn_where_they_belong():
    axes = training_figures(HISTORY)["loss"].axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.0, 1.0], [2.0, 1.0], [1.1]]
    twenty = [{"step": i, "loss": float(i)} for i in range(20)]
    smooth = training_figures(twenty)["loss"].axes[0].lines[1].get_ydata()
    assert smooth[:3].tolist() == [0.0, 0.5, 1.5]  # the mean of the last 20 // 10 = 2 steps


def test_labels_of_every_script_are_drawn_without_a_warning():
    figure = confusion_figure([[1, 0], [0, 1]], ["正面", "سلبي"], normalised=False)
    assert {"正面", "سلبي"} <= set(texts(to_svg(figure, "a", "正面")))
    assert to_png(figure, dpi=50).startswith(b"\x89PNG")


@pytest.mark.parametrize("k", [2, 3, 7])
def test_png(k):
    figure = confusion_figure([[1] * k] * k, [f"label {i}" for i in range(k)], normalised=True)
    assert to_png(figure, dpi=50).startswith(b"\x89PNG\r\n")
