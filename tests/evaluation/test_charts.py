"""Charts are well-formed SVG, show every point in its place, and escape names and titles."""

from xml.etree import ElementTree

import pytest

from trl_rec.evaluation.charts import HEIGHT, LEFT, RIGHT, WIDTH, line_charts, logged_curve


SVG = "{http://www.w3.org/2000/svg}"


def test_lines_ticks_and_names() -> None:
    curves = {"a <b>": [(0, 0.0), (5, 0.5), (10, 1.0)], "other": [(0, 1.0), (10, 0.0)]}
    root = ElementTree.fromstring(line_charts({"Reward & more": curves, "KL": {"other": [(0, 3.0)]}}))
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in root.iter(f"{SVG}polyline")
    ]
    assert [len(line) for line in lines] == [3, 2, 1]
    (left, low), (middle, half), (right, high) = lines[0]
    assert (left, right) == (LEFT, WIDTH - RIGHT) and middle == pytest.approx((left + right) / 2)
    assert low > half > high and half == pytest.approx((low + high) / 2, abs=0.1) and 0 < high < low < HEIGHT
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Reward & more", "KL", "a <b>", "other", "step"} <= set(texts) and {"0", "0.2", "1"} <= set(texts)


def test_points_that_are_not_finite_are_left_out_and_empty_charts_are_an_error() -> None:
    root = ElementTree.fromstring(line_charts({"x": {"a": [(0, float("nan")), (1, 2.0), (2, 2.0)]}}))
    assert len(next(root.iter(f"{SVG}polyline")).get("points").split()) == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        line_charts({"x": {"a": []}})


def test_a_logged_quantity_over_another() -> None:
    log = [{"step": 1, "kl": 0.1, "reward": 2}, {"step": 2, "eval_loss": 1}, {"step": 3, "kl": 0.2, "reward": 3}]
    assert logged_curve(log, "reward") == [(1, 2), (3, 3)]
    assert logged_curve(log, "reward", x="kl") == [(0.1, 2), (0.2, 3)]
