"""What a classifier's report shows: what it takes for what, how far its confidence can be trusted, and examples, the wrong ones first."""

import numpy as np
from scipy.special import log_softmax

from research.data.examples import Examples
from research.model import transformer
from research.tasks import metrics
from research.tasks.classify import centred
from research.train import exhibits
from research.train.loop import Result

SHOWN = 48  # pictures
CLIPS = 12


def report(result: Result) -> dict[str, float]:
    """Shows a finished run of the task `classify` with one right class for each picture or film on its page; for an experiment's `after`.

    Returns the accuracy (Wilson's interval), macro F1 and expected calibration error (bootstrap) on all held-out examples, as flat numbers.
    """
    program, run = result.program, result.run.path
    assert program is not None and result.state is not None and isinstance(program.corpus, Examples)
    held_out, classes = program.corpus.eval, program.corpus.classes

    def outputs(params, batch):
        return transformer.apply(params, centred(batch), program.model).outputs

    shares = np.exp(log_softmax(program.predict(result.state, outputs).astype(np.float64), axis=1))
    labels, predicted = held_out["label"], shares.argmax(axis=1)
    accuracy = metrics.accuracy(predicted, labels)
    trusted = metrics.calibration(*metrics.top_label(shares, labels))
    f1 = metrics.f1(predicted, labels, classes)
    numbers = {"accuracy": accuracy, "macro F1": f1, "expected calibration error": trusted.error}
    rows = [[name, x.percent(), x.count] for name, x in numbers.items()]
    exhibits.show(run, "On the held-out examples", exhibits.table(rows, ["", "value (95% interval)", "examples"]))
    matrix = metrics.confusion_matrix(predicted, labels, classes)
    exhibits.show(run, "What is taken for what", exhibits.confusion(matrix, classes))
    bins = [(one.confidence, one.right.value, one.right.count) for one in trusted.bins]
    exhibits.show(run, "Can its confidence be trusted?", exhibits.calibration(bins))
    order = np.argsort(predicted == labels, kind="stable")
    captions = [f"{classes[p]}, {share:.0%} (is {classes[label]})"
                for p, share, label in zip(predicted, shares.max(axis=1), labels, strict=True)]  # fmt: skip
    pictures, right = held_out["image"], predicted == labels
    if pictures.ndim == 5:
        some = order[:CLIPS]
        shown = exhibits.clips(pictures[some], [captions[i] for i in some])
    else:
        some = order[:SHOWN]
        shown = exhibits.gallery(pictures[some], [captions[i] for i in some], right[some].tolist())
    exhibits.show(run, "Examples, the wrong ones first", shown)
    return {**accuracy.numbers("accuracy"), **f1.numbers("macro_f1"), **trusted.error.numbers("calibration_error")}
