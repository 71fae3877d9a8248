"""Metrics of classes that were picked: accuracy, the confusion matrix and F1. Each has a finaliser of sums that add up over shards."""

from typing import Any, Literal, get_args

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.checks import Classes
from research.tasks.metrics.estimate import Estimate, Resampling, interval, wilson
from research.tasks.metrics.ranking import places, recall_at

Average = Literal["macro", "micro", "binary"]


def accuracy(predicted: Any, labels: Any, *, level: float = 0.95) -> Estimate:
    """The share of examples whose predicted class, int (n,), is the label, int (n,); Wilson's interval."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise UserError(
            f"predictions of shape {predicted.shape} for labels of shape {labels.shape}; expected one dimension, alike"
        )
    return accuracy_of_sums(int((predicted == labels).sum()), len(labels), level=level)


def accuracy_of_sums(correct: float, count: float, *, level: float = 0.95) -> Estimate:
    """Accuracy from how many examples were right, of how many. Raises UserError for a count that is not whole: a weight other than 0 and 1
    does not say how many examples there were."""
    if not float(count).is_integer():
        raise UserError(f"a count of {count}: expected a whole number; add up examples of weight 1, and 0 for padding")
    return wilson(correct, int(count), level)


def top_k_accuracy(scores: Any, labels: Any, k: int, *, level: float = 0.95) -> Estimate:
    """The share of examples whose label, int (n,), is among the `k` highest of scores (n, classes); Wilson's interval.

    A label that ties with others over the last places counts by its chance of getting one.
    """
    return recall_at(places(scores, labels), k, level=level)


def confusion_matrix(predicted: Any, labels: Any, classes: Classes) -> np.ndarray:
    """How many examples of each class were taken for each, int64 (classes, classes): rows are labels, columns predictions. Matrices of
    shards add up."""
    count = checks.number_of(classes)
    predicted, labels = checks.labels(predicted, count, "predictions"), checks.labels(labels, count)
    checks.same_length(predicted, labels, "predictions", "labels")
    return np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def f1(
    predicted: Any, labels: Any, classes: Classes, average: Average = "macro", how: Resampling = Resampling()
) -> Estimate:
    """`f1_of_confusion` of predictions and labels, int (n,) each."""
    return f1_of_confusion(confusion_matrix(predicted, labels, classes), average, how, classes=classes)


def f1_of_confusion(
    confusion: np.ndarray, average: Average = "macro", how: Resampling = Resampling(), *, classes: Classes | None = None
) -> Estimate:
    """F1, the harmonic mean of precision and recall, `2 right / (labels + predictions)` of a class.

    `macro` is the mean over classes, `micro` takes the sums over classes first, which makes it the accuracy, `binary` is that of class 1 of
    two. The bootstrap draws examples, of which the matrix is all that matters; a class that is neither label nor prediction in
    a resample is left out of its mean. Raises UserError, naming it, for a class without a label where its F1 is asked for.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise UserError(f"a confusion matrix of shape {confusion.shape}; expected a row and a column for each class")
    if (confusion < 0).any() or (confusion != confusion.astype(np.int64)).any() or confusion.sum() < 2:
        raise UserError(f"a confusion matrix of {confusion.sum()} examples; expected whole numbers, of at least 2")
    if classes is not None and checks.number_of(classes) != len(confusion):
        raise UserError(
            f"{checks.number_of(classes)} classes for a confusion matrix of {len(confusion)}; expected as many"
        )
    if average not in get_args(Average):
        raise UserError(f"the {average!r} average of F1; expected one of {', '.join(get_args(Average))}")
    if average == "binary" and len(confusion) != 2:
        raise UserError(f"a binary F1 of {len(confusion)} classes; expected 2: choose macro or micro")
    if average != "micro":
        counts = confusion.sum(axis=1)
        asked = counts if average == "macro" else np.array([1, counts[1]])
        checks.none_empty(asked, len(confusion) if classes is None else classes, f"the {average} F1")
    n, draw = int(confusion.sum()), np.random.default_rng(how.seed)
    row, column = np.nonzero(confusion)
    cells = confusion[row, column]
    drawn = [_f1(row, column, draw.multinomial(n, cells / n), len(confusion), average) for _ in range(how.resamples)]
    return interval(_f1(row, column, cells, len(confusion), average), drawn, (n,), how, whole=1.0)


def _f1(row: np.ndarray, column: np.ndarray, cells: np.ndarray, classes: int, average: Average) -> float:
    """F1 of counts in the cells of a matrix; NaN where no class that is asked for occurs."""
    right = np.bincount(row, cells * (row == column), classes)
    either = np.bincount(row, cells, classes) + np.bincount(column, cells, classes)
    if average == "micro":
        return float(2 * right.sum() / either.sum())
    if average == "binary":
        right, either = right[1:], either[1:]
    there = either > 0
    return float(np.mean(2 * right[there] / either[there])) if there.any() else float("nan")
