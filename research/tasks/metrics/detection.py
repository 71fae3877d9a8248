"""Mean average precision of object detection at an overlap, as PASCAL VOC has computed it since 2010."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The boxes of one picture: `corners` (n, 4) as x0, y0, x1, y1, classes `labels` int (n,) and, of boxes that were found, `scores` (n,).

    A side is x1 - x0: coordinates lie between pixels. Raises UserError for shapes that differ, NaN, a label below 0, and x1 < x0 or y1 < y0.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def __post_init__(self):
        corners, labels = np.asarray(self.corners, np.float64), np.asarray(self.labels)
        scores = None if self.scores is None else np.asarray(self.scores, np.float64)
        if corners.size and (corners.ndim != 2 or corners.shape[1] != 4):
            raise UserError(f"corners of boxes have the shape {corners.shape}; expected (n, 4): x0, y0, x1, y1")
        corners = corners.reshape(-1, 4)
        for name, values in (("labels", labels), ("scores", scores)):
            if values is not None and values.shape != (len(corners),):
                raise UserError(f"{name} of shape {values.shape} for {len(corners)} boxes; expected one for each")
        if len(labels) and (labels.dtype.kind not in "iu" or labels.min() < 0):
            raise UserError(
                f"labels of boxes are {labels.dtype} from {labels.min()} on; expected whole numbers from 0 on"
            )
        ok = np.isfinite(corners).all(axis=1) & (corners[:, 2:] >= corners[:, :2]).all(axis=1)
        if not ok.all():
            i = int(np.argmin(ok))
            raise UserError(
                f"box {i} is {corners[i].tolist()}; expected finite x0, y0, x1, y1 with x0 <= x1 and y0 <= y1"
            )
        if scores is not None and np.isnan(scores).any():
            raise UserError(f"the score of box {int(np.argmax(np.isnan(scores)))} is NaN; expected a number")
        object.__setattr__(self, "corners", corners)
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "scores", scores)


def mean_average_precision(
    found: Sequence[Boxes], truths: Sequence[Boxes], overlap: float = 0.5, how: Resampling = Resampling()
) -> Estimate:
    """The mean over classes that occur among the truths of `average_precisions`. The bootstrap draws pictures, one of `found` and `truths` each; a
    class whose truths a resample lacks is left out of its mean.

    Taking the highest precision makes the number too large for few pictures, by more than the bootstrap sees: for tens of pictures the
    interval holds the truth less often than it says.
    """
    curves = _curves(found, truths, overlap)

    def statistic(index):
        times = np.bincount(index, minlength=len(truths))
        there = [value for value in (curve.area(times) for curve in curves.values()) if not np.isnan(value)]
        return float(np.mean(there)) if there else float("nan")

    return bootstrap(statistic, len(truths), how, whole=1.0)


def average_precisions(found: Sequence[Boxes], truths: Sequence[Boxes], overlap: float = 0.5) -> dict[int, float]:
    """The average precision of each class that occurs among the truths: the area under the curve of precision over recall, precision being
    the highest at that recall or above it (Everingham and Winn, the VOC 2010 development kit, section 3.4.1).

    By falling score, a box that was found takes the truth of its class that it overlaps most. It is right where intersection over union
    is at least `overlap` and no box with a higher score has taken that truth. Boxes of equal score enter the curve together. Boxes of
    classes without truths are not scored.

    Raises UserError for pictures without a partner, boxes without scores, a truth without area, no truth at all, and an overlap
    outside (0, 1].
    """
    return {label: curve.area(np.ones(len(truths))) for label, curve in _curves(found, truths, overlap).items()}


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Of one class: the pictures of found boxes by falling score, which are right, where scores change, and truths by picture."""

    picture: np.ndarray
    right: np.ndarray
    ends: np.ndarray
    truths: np.ndarray

    def area(self, times: np.ndarray) -> float:
        """The average precision with pictures counted so many times, (pictures,); NaN without a truth."""
        total = float(times @ self.truths)
        if total == 0:
            return float("nan")
        weight = times[self.picture]
        right, all_found = np.cumsum(weight * self.right)[self.ends], np.cumsum(weight)[self.ends]
        precision = right / np.maximum(all_found, 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(right, prepend=0.0) * best).sum() / total)


def _curves(found: Sequence[Boxes], truths: Sequence[Boxes], overlap: float) -> dict[int, _Curve]:
    """The curves of the classes that occur among the truths, by class."""
    checks.same_length(found, truths, "pictures with found boxes", "pictures with truths")
    if not len(truths):
        raise UserError("no pictures; expected at least one")
    if not 0 < overlap <= 1:
        raise UserError(f"an overlap of {overlap}: expected an intersection over union in (0, 1], such as 0.5")
    scores, right = [], []
    for i, (ours, theirs) in enumerate(zip(found, truths, strict=True)):
        if ours.scores is None:
            raise UserError(f"picture {i}: found boxes have no scores; give one for each")
        if (_areas(theirs.corners) == 0).any():
            raise UserError(f"picture {i}: truth {int(np.argmin(_areas(theirs.corners)))} has no area; leave it out")
        scores.append(ours.scores)
        right.append(_right(ours, ours.scores, theirs, overlap))
    pictures = np.repeat(np.arange(len(found)), [len(ours.labels) for ours in found])
    labels, scores, flags = np.concatenate([f.labels for f in found]), np.concatenate(scores), np.concatenate(right)
    classes = np.unique(np.concatenate([theirs.labels for theirs in truths])).tolist()
    if not classes:
        raise UserError(f"no truth in {len(truths)} pictures; expected at least one box to be found")
    curves = {}
    for label in classes:
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        falls = scores[mine]
        ends = np.flatnonzero(np.append(falls[1:] != falls[:-1], True)) if len(mine) else np.zeros(0, int)
        counts = np.array([(theirs.labels == label).sum() for theirs in truths])
        curves[label] = _Curve(pictures[mine], flags[mine], ends, counts)
    return curves


def _right(found: Boxes, scores: np.ndarray, truths: Boxes, overlap: float) -> np.ndarray:
    """Which boxes of one picture are right, bool (n,)."""
    right = np.zeros(len(found.labels), bool)
    if not len(found.labels) or not len(truths.labels):
        return right
    order = np.lexsort(truths.corners.T)  # of truths overlapped alike, their place decides, not their order
    shared = np.where(
        found.labels[:, None] == truths.labels[order], intersection_over_union(found.corners, truths.corners[order]), -1
    )
    taken = shared.argmax(axis=1)
    reach = np.flatnonzero(shared.max(axis=1) >= overlap)
    reach = reach[np.argsort(-scores[reach], kind="stable")]
    right[reach[np.unique(taken[reach], return_index=True)[1]]] = True
    return right


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The areas that each of boxes (n, 4) and each of boxes (m, 4) share, over those that they cover together, (n, m); 0 without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    covered = _areas(one)[:, None] + _areas(other)[None] - shared
    return np.divide(shared, covered, out=np.zeros_like(shared), where=covered > 0)


def _areas(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
