"""Handwritten digits by a vision transformer: a picture in patches, read in all directions, and one answer.

    python experiments/classify_images.py

Data: the 1,797 digits of 8 x 8 pixels in scikit-learn's package (extra `tasks`), a fifth of them held out. In training each is turned by up to 8
degrees, moved and scaled by up to 8% (`task.augment`).

As measured on 2 CPU cores (AMD EPYC), 2026-11-27: of 359 held-out digits 99.7% (95% interval 98.4 to 100.0) right after 59 s from start to end
(seed 0), 99.2% after 41 s (seed 1).
"""

from research import train
from research.model.config import ModelConfig
from research.model.input_config import ImageConfig
from research.tasks.classify import ClassifyConfig
from research.train import classified

EXPERIMENT = train.Experiment(
    "classify_images",
    train.Config(
        data="digits",
        task=ClassifyConfig(augment=("rotate:8", "translate:0.08", "scale:0.08"), label_smoothing=0.1),
        model=ModelConfig(
            inputs="image", image=ImageConfig(height=8, patch=2), head="linear", pool="mean", width=96, layers=4, heads=4,
            patterns=("bidirectional",), positions="learned", mlp_width=192, dropout=0.1, init="fan-in", unroll=4,
        ),
        optimizer=train.OptimizerConfig(
            kind="muon", learning_rate=0.01, weight_decay=0.1, adam_ratio=0.3, ema_decay=0.99,
            schedule=train.ScheduleConfig(kind="cosine", warmup_steps=50),
        ),
        steps=1500, batch_size=64, eval_every=250, log_every=50,
    ),
    description=__doc__,
    after=classified.report,
)  # fmt: skip

if __name__ == "__main__":
    train.main(EXPERIMENT)
