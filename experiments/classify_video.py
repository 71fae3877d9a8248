"""Which way a shape moves, and how fast: films by a transformer that reads them in tubelets.

    python experiments/classify_video.py

Data: 2,000 made films of 8 frames of 16 x 16 pixels with noise; squares, discs and crosses move in four directions at two speeds, and no single
frame tells which. A fifth is held out. `--data films:5000` makes more.

As measured on 2 CPU cores (AMD EPYC), 2026-11-27: all 400 held-out films right (95% interval 99.0 to 100.0) after 24 s from start to end.
"""

from research import train
from research.model.config import ModelConfig
from research.model.input_config import ImageConfig
from research.tasks.classify import ClassifyConfig
from research.train import classified

EXPERIMENT = train.Experiment(
    "classify_video",
    train.Config(
        data="films",
        task=ClassifyConfig(label_smoothing=0.1),
        model=ModelConfig(
            inputs="image", image=ImageConfig(height=16, frames=8, patch=4, tubelet=2), head="linear", pool="mean", width=64, layers=3,
            heads=4, patterns=("bidirectional",), positions="learned", mlp_width=128, dropout=0.1, init="fan-in", unroll=3,
        ),
        optimizer=train.OptimizerConfig(
            kind="muon", learning_rate=0.01, weight_decay=0.1, adam_ratio=0.3, ema_decay=0.99,
            schedule=train.ScheduleConfig(kind="cosine", warmup_steps=50),
        ),
        steps=500, batch_size=32, eval_every=125, log_every=50,
    ),
    description=__doc__,
    after=classified.report,
)  # fmt: skip

if __name__ == "__main__":
    train.main(EXPERIMENT)
