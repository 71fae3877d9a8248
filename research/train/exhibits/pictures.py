"""Pictures, videos, and pictures with boxes on them."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.train.exhibits import media
from research.train.exhibits.look import hues
from research.train.markup import escaped, left_out, note

PICTURES = 64  # in a gallery
CLIPS = 12
FRAMES = 48  # of a clip
SCENES = 24
BOXES = 40  # on a picture
PIXELS, FRAME_PIXELS = 4_000_000, 6_000_000  # of all pictures of an exhibit, of all frames of its videos


def gallery(images: Any, captions: Sequence[str], right: Sequence[bool] | None = None) -> str:
    """Returns HTML of `images` (n, H, W, C), uint8 or floats from 0 to 1, with C 1, 3 or 4 or absent, each with its caption.

    `right` tells which ones the model had right; the wrong ones are marked by a word, a sign and a frame. Small pictures are enlarged in squares.
    The first 64 are shown, shrunk where all together are too large. Raises UserError for other shapes, types and ranges, and for unequal numbers.
    """
    array = media.pixels(images, "pictures", 4)
    same_number("pictures", array, captions=captions, right=right)
    shown, full = array[:PICTURES], array.shape[1:3]
    size = media.fitting(full, len(shown), PIXELS)
    tiles = []
    for i, one in enumerate(shown):
        verdict = None if right is None else bool(right[i])
        alt = str(captions[i]) + {None: "", True: ", right", False: ", wrong"}[verdict]
        tiles.append(
            _tile(_image(media.png(media.picture(one, size)), alt, size), _caption(captions[i], verdict), verdict)
        )
    counted = f"{sum(map(bool, right)):,} of {len(array):,} right" if right is not None and len(array) else ""
    return _tiles(tiles, size) + note(counted, _shrunk(full, size), left_out(len(shown), len(array), "pictures"))


def clips(videos: Any, captions: Sequence[str], rate: float = 8.0) -> str:
    """Returns HTML of `videos` (n, F, H, W, C), uint8 or floats from 0 to 1, as animated WebP at `rate` frames a second, each with its caption.

    Who asked the system for less motion sees the first frames. The first 12 are shown, with at most 48 of their frames at even distances, for as
    long; shrunk where all together are too large. Raises UserError as `gallery` does, and for a rate that is not above 0.
    """
    array = media.pixels(videos, "videos", 5)
    same_number("videos", array, captions=captions)
    if not rate > 0:
        raise UserError(f"{rate} frames a second; expected a rate above 0")
    count, full = array.shape[1], array.shape[2:4]
    shown, kept = array[:CLIPS], np.arange(min(count, FRAMES)) * count // min(count, FRAMES)
    size = media.fitting(full, len(shown) * len(kept), FRAME_PIXELS)
    ends = np.rint(np.array([*kept, count]) * 1000 / rate).astype(int)
    tiles = []
    for one, caption in zip(shown, captions, strict=False):
        frames = [media.picture(frame, size) for frame in one[kept]]
        still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{media.png(frames[0])}">'
        moving = _image(media.webp(frames, np.diff(ends).tolist()), f"video: {caption}", size)
        tiles.append(_tile(f"<picture>{still}{moving}</picture>", _caption(caption)))
    told = f"{count:,} frames at {rate:g} a second" if len(array) else ""
    fewer = left_out(len(kept), count, "frames of each")
    return _tiles(tiles, size) + note(told, fewer, _shrunk(full, size), left_out(len(shown), len(array), "videos"))


def scenes(
    images: Sequence[Any],
    boxes: Sequence[Any],
    labels: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]] | None = None,
) -> str:
    """Returns HTML of pictures, each (H, W, C) as in `gallery` and of any size, with its `boxes` drawn on it: (k, 4), the left, top, right and
    bottom edge in pixels of the picture. Each box has a label and, with `scores`, a score.

    The first 24 pictures are shown, with the 40 boxes of the highest scores (without scores, the first). Raises UserError for unequal numbers, boxes
    that are not finite or whose edges are the wrong way round, and pictures that `gallery` refuses.
    """
    same_number("pictures", images, boxes=boxes, labels=labels, scores=scores)
    names = sorted({str(label) for of_one in labels for label in of_one})
    shown, tiles, hidden, total = images[:SCENES], [], 0, 0
    for i, image in enumerate(shown):
        array = media.pixels(np.asarray(image)[None], "pictures", 4)[0]
        edges = _edges(boxes[i], len(labels[i]), None if scores is None else len(scores[i]), i)
        order = (
            range(len(edges)) if scores is None else np.argsort(-np.asarray(scores[i], float), kind="stable").tolist()
        )
        drawn = [(edges[j], str(labels[i][j]), None if scores is None else float(scores[i][j])) for j in order[:BOXES]]
        hidden, total = hidden + len(edges) - len(drawn), total + len(edges)
        tiles.append(_tile(_scene(array, drawn, names, len(shown)), _caption(_told(drawn))))
    drawn_boxes = left_out(total - hidden, total, "boxes, those of the lowest scores,")
    return _tiles(tiles, (256, 256)) + note(drawn_boxes, left_out(len(shown), len(images), "pictures"))


def same_number(what: str, things: Sized, **others: Sized | None) -> None:
    """Raises UserError where there are not as many of the others as there are things; None is not given."""
    for name, other in others.items():
        if other is not None and len(other) != len(things):
            raise UserError(f"{len(other)} {name} for {len(things)} {what}; expected one for each")


def _edges(boxes: Any, labelled: int, scored: int | None, number: int) -> np.ndarray:
    """Boxes as floats [k, 4]."""
    edges = np.asarray(boxes, np.float64)
    edges = edges.reshape(0, 4) if edges.size == 0 else edges
    if edges.ndim != 2 or edges.shape[1] != 4 or labelled != len(edges) or scored not in (None, len(edges)):
        found = f"boxes of shape {edges.shape} with {labelled} labels" + (
            "" if scored is None else f" and {scored} scores"
        )
        raise UserError(f"picture {number} has {found}; expected (k, 4) and one of each for a box")
    if not np.isfinite(edges).all() or (edges[:, :2] > edges[:, 2:]).any():
        raise UserError(
            f"picture {number} has boxes that are no left, top, right, bottom in that order; convert them first"
        )
    return edges


def _scene(
    array: np.ndarray, drawn: Sequence[tuple[np.ndarray, str, float | None]], names: list[str], count: int
) -> str:
    """SVG of one picture under its boxes, the first box on top."""
    height, width = array.shape[:2]
    size = media.fitting((height, width), count, PIXELS)
    letters = width / 18
    parts = [
        f'<image href="{media.png(media.picture(array, size))}" width="{width}" height="{height}"{_squares(size)}/>'
    ]
    for (left, top, right, bottom), label, score in reversed(drawn):
        style = hues(names.index(label))
        rect = f'x="{left:.6g}" y="{top:.6g}" width="{right - left:.6g}" height="{bottom - top:.6g}"'
        at = f'x="{left + letters / 5:.6g}" y="{max(top, 0) + letters:.6g}" font-size="{letters:.6g}"'
        parts.append(
            f'<rect class="halo" {rect}/><rect class="box {style}" {rect}/><text class="box {style}" {at}>{escaped(_scored(label, score))}</text>'
        )
    said = f"picture with {len(drawn)} boxes: {_told(drawn)}" if drawn else "picture without boxes"
    return f'<svg class="scene" viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(said)}">{"".join(parts)}</svg>'


def _told(drawn: Sequence[tuple[np.ndarray, str, float | None]]) -> str:
    return ", ".join(_scored(label, score) for _, label, score in drawn) or "no boxes"


def _scored(label: str, score: float | None) -> str:
    return label if score is None else f"{label} {score:.2f}"


def _tile(content: str, caption: str, verdict: bool | None = None) -> str:
    return f'<figure class="tile{" wrong" if verdict is False else ""}">{content}{caption}</figure>'


def _tiles(tiles: Sequence[str], size: tuple[int, int]) -> str:
    large = " large" if max(size) > media.ENLARGED else ""
    return f'<div class="tiles{large}">{"".join(tiles)}</div>'


def _caption(text: Any, verdict: bool | None = None) -> str:
    mark = {None: "", True: '<span class="right">✓ right</span> ', False: '<span class="wrong">✗ wrong</span> '}[
        verdict
    ]
    return f'<figcaption dir="auto">{mark}{escaped(text)}</figcaption>'


def _image(source: str, alt: str, size: tuple[int, int]) -> str:
    return f'<img src="{source}" alt="{escaped(alt)}" width="{size[1]}" height="{size[0]}"{_squares(size)}>'


def _squares(size: tuple[int, int]) -> str:
    """The class of a picture so small that it is enlarged, and then in squares."""
    return ' class="squares"' if max(size) <= media.ENLARGED else ""


def _shrunk(full: tuple[int, int], size: tuple[int, int]) -> str:
    return f"shrunk from {full[1]} × {full[0]} to {size[1]} × {size[0]} pixels" if size != full else ""
