"""Pictures of attention: what they label, and that colour tells even maps from peaked ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multihead.plot import attention_map, attention_maps, head_grid, save

WORDS = ["to", "be", "or", "not"]


def colours(axes: Any) -> np.ndarray:
    """The colours that a map is drawn in, (L, S, 4)."""
    drawn = axes.images[-1]
    return np.asarray(drawn.to_rgba(drawn.get_array()))


def lightness(rgba: np.ndarray) -> np.ndarray:
    """Lightness on white paper, 0 to 1."""
    rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    return np.asarray(rgb @ [0.2126, 0.7152, 0.0722])


def labels(ticks: Any) -> list[str]:
    return [label.get_text() for label in ticks]


@pytest.mark.parametrize("over_image", [False, True])
def test_an_even_map_is_blank_and_a_peaked_one_is_dark(over_image: bool) -> None:
    even, peaked = np.full((4, 4), 1 / 4), np.eye(4)
    if over_image:
        even, peaked = even / 4, np.zeros((4, 4))
        peaked[2, 1] = 1
    how: dict[str, Any] = {"image": np.zeros((8, 8))} if over_image else {}
    for share in (1.0, 1.3):  # near enough to even
        drawn = lightness(colours(attention_map(even * share, **how).axes[0]))
        assert drawn.min() > 0.85
    assert lightness(colours(attention_map(peaked, **how).axes[0])).min() < 0.25


def test_darker_is_more_all_the_way() -> None:
    shares = np.geomspace(1 / 32, 1, 32)[None].repeat(32, axis=0)
    light = lightness(colours(attention_map(shares).axes[0]))[0]
    assert (np.diff(light) < 0).all()


def test_what_a_mask_hides_is_grey() -> None:
    causal = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    drawn = colours(attention_map(causal).axes[0])
    assert np.ptp(drawn[0, 1, :3]) < 0.01
    assert drawn[0, 1, 0] < 0.95
    assert drawn[3, 3, 0] > 0.95  # even, and seen


def test_the_colour_bar_counts_even_shares() -> None:
    bar = attention_map(np.eye(16)).axes[-1]
    assert labels(bar.get_yticklabels()) == ["1×", "2×", "4×", "8×", "16×"]
    np.testing.assert_allclose(bar.get_yticks(), 2.0 ** np.arange(5) / 16)
    assert "1/16" in bar.get_ylabel()


def test_tokens_are_labels_and_long_ones_are_cut() -> None:
    keys = ["a$b$c", "antidisestablishmentarianism", " "]
    figure = attention_map(np.full((4, 3), 1 / 3), WORDS, keys=keys, title="one")
    axes = figure.axes[0]
    assert labels(axes.get_yticklabels()) == WORDS
    assert labels(axes.get_xticklabels()) == [r"a\$b\$c", "antidisesta…", "␣"]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {60.0}
    assert axes.get_title() == "one"


def test_labels_do_not_overlap(tmp_path: Path) -> None:
    figure = attention_map(np.eye(40), [f"word{n}" for n in range(40)])
    save(figure, tmp_path / "map.png")
    for ticks in (figure.axes[0].get_yticklabels(), figure.axes[0].get_xticklabels()):
        centres = [label.get_window_extent().get_points().mean(axis=0) for label in ticks]
        apart = np.linalg.norm(np.diff(centres, axis=0), axis=1).min()
        assert apart > 8 * figure.dpi / 72  # the height of a letter


def test_tokens_of_rows_are_those_of_columns_only_where_they_fit() -> None:
    axes = attention_map(np.eye(4), WORDS).axes[0]
    assert labels(axes.get_xticklabels()) == WORDS
    axes = attention_map(np.full((4, 3), 1 / 3), WORDS).axes[0]
    assert labels(axes.get_xticklabels()) == ["0", "1", "2"]


@pytest.mark.parametrize(("heads", "across"), [(1, 1), (2, 2), (4, 2), (6, 3), (7, 4), (12, 4)])
def test_heads_stand_in_a_grid_of_one_scale(
    heads: int, across: int, rng: np.random.Generator
) -> None:
    weights = rng.random((heads, 4, 4)) * np.arange(1, heads + 1)[:, None, None]
    figure = head_grid(weights, WORDS, title="layer 1")
    maps = figure.axes[:heads]
    assert [axes.get_title() for axes in maps] == [f"head {h + 1}" for h in range(heads)]
    assert maps[0].get_gridspec().ncols == across
    for axes, expected in zip(maps, weights, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        assert axes.images[0].norm.vmin == 1 / 4
    assert len({axes.images[0].norm.vmax for axes in maps}) == 1
    assert figure.get_suptitle() == "layer 1"


def test_the_patch_that_looks_is_framed() -> None:
    figure = attention_map(np.eye(4) / 4, image=np.zeros((8, 8)), query=(3, 1))
    (frame,) = figure.axes[0].patches
    assert frame.get_bbox().bounds == (1.5, 5.5, 2, 2)
    assert len(head_grid(np.ones((3, 2, 2)) / 4, image=np.zeros((8, 8))).axes) == 3 + 1


def test_maps_of_many_images_are_on_the_same_scale(rng: np.random.Generator) -> None:
    figure = attention_maps(rng.random((2, 8, 8)), np.full((2, 3, 4, 4), 1 / 16))
    drawn = [colours(axes) for axes in figure.axes[2:-1]]
    assert all(lightness(x).min() > 0.99 for x in drawn)
    assert "1/16" in figure.axes[-1].get_ylabel()


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_a_picture_is_the_same_file_each_time(ending: str, tmp_path: Path) -> None:
    for name in "ab":
        save(attention_map(np.eye(4), WORDS), tmp_path / f"{name}.{ending}")
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert first == second
    assert b"Date" not in first


def test_a_notebook_shows_a_picture() -> None:
    shown = attention_map(np.eye(4), WORDS)._repr_png_()  # type: ignore[attr-defined]
    assert shown.startswith(b"\x89PNG")


EVEN = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("weights", "how", "error", "message"),
    [
        (EVEN[None], {}, ValueError, r"weights: expected \(L, S\), of one head, got \(1, 2, 2\)"),
        (EVEN[:0], {}, ValueError, r"weights: expected .* got \(0, 2\)"),
        (-EVEN, {}, ValueError, "weights: expected finite weights from 0, got -0.5"),
        (EVEN * np.nan, {}, ValueError, "weights: expected finite weights from 0, got nan"),
        (EVEN * np.inf, {}, ValueError, "weights: expected finite weights from 0, got inf"),
        (EVEN > 0, {}, TypeError, "weights: expected numbers, got bool"),
        (EVEN, {"tokens": ["a"]}, ValueError, "tokens: expected 2 of them, by weights, got 1"),
        (EVEN, {"tokens": "ab"}, TypeError, "tokens: expected a sequence of str, got str"),
        (EVEN, {"keys": [1, 2]}, TypeError, "keys: expected a sequence of str, got list"),
        (EVEN, {"query": (0, 0)}, TypeError, "query: expected None without an image"),
        (EVEN, {"image": np.eye(4), "tokens": ["a", "b"]}, TypeError, "tokens: expected None"),
        (EVEN, {"image": np.ones(4)}, ValueError, r"image: expected \(height, width\), got"),
        (EVEN, {"image": np.eye(4), "query": (2, 0)}, ValueError, "query: expected a row below 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    weights: Any, how: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attention_map(weights, **how)
    if weights.ndim == 2 and message.startswith("weights: expected finite"):
        with pytest.raises(error, match=message):
            head_grid(weights[None], **how)
