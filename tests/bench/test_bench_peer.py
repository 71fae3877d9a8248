"""The peer itself, where PyTorch and transformers are installed."""

import sys

import pytest

from research.bench import shapes, train
from research.bench.process import started
from research.core import params as P
from research.families import gpt2
from research.model import transformer

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_the_peer_is_the_same_model_and_learns():
    _, (eager, compiled) = train.sides(train.Arguments(peer_python=sys.executable))
    assert [eager.request["mode"], compiled.request["mode"]] == ["eager", "compiled"]
    settings = {"device": "cpu", "dtype": "float32", "threads": 1, **train.OPTIMIZER, "learning_rate": 1e-2}
    sizes = {"layers": 2, "width": 32, "heads": 4, "context": 8, "batch_size": 4, "vocabulary": 11}
    with started(eager) as ask:
        assert {"torch", "transformers"} <= set(ask("about")["versions"])
        built = ask("build", **sizes, **settings)
        before = ask("time", seconds=0.01)["loss"]
        after = ask("time", seconds=2.0)["loss"]
    model = gpt2.config(2, 32, 4, 11, 8)
    assert shapes.Shape(**sizes).tokens == 32
    assert built["params"] == P.count(transformer.specs(model))
    assert built["attention"] in ("sdpa", "eager") and built["adamw"] in ("fused", "foreach", "per tensor")
    assert after < before - 0.1
