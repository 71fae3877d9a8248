"""Metrics on the host, each an estimate with its confidence interval. Intervals are at 95% unless asked otherwise; `count` is the number of
independent units. Sums that add up over shards (right answers, nats, errors, confusion matrices) have finalisers that take them."""

from research.tasks.metrics.classification import (
    accuracy,
    accuracy_of_sums,
    confusion_matrix,
    f1,
    f1_of_confusion,
    top_k_accuracy,
)
from research.tasks.metrics.detection import Boxes, average_precisions, intersection_over_union, mean_average_precision
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap, bootstrap_sums, ratio, wilson
from research.tasks.metrics.numbers import bits_per_byte, mse, nats_per, perplexity, r2
from research.tasks.metrics.ranking import Places, ndcg_at, places, recall_at
from research.tasks.metrics.reliability import Bin, Calibration, calibration, top_label
from research.tasks.metrics.roc import auroc, crossing, equal_error_rate
from research.tasks.metrics.text import bleu, character_error_rate, chrf, error_rate_of_sums, word_error_rate

__all__ = [
    "Bin",
    "Boxes",
    "Calibration",
    "Estimate",
    "Places",
    "Resampling",
    "accuracy",
    "accuracy_of_sums",
    "auroc",
    "average_precisions",
    "bits_per_byte",
    "bleu",
    "bootstrap",
    "bootstrap_sums",
    "calibration",
    "character_error_rate",
    "chrf",
    "confusion_matrix",
    "crossing",
    "equal_error_rate",
    "error_rate_of_sums",
    "f1",
    "f1_of_confusion",
    "intersection_over_union",
    "mean_average_precision",
    "mse",
    "nats_per",
    "ndcg_at",
    "perplexity",
    "places",
    "r2",
    "ratio",
    "recall_at",
    "top_k_accuracy",
    "top_label",
    "wilson",
    "word_error_rate",
]
