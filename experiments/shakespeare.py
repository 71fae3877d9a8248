"""Characters of Shakespeare."""

from research import train
from research.model.config import ModelConfig, RopeConfig

EXPERIMENT = train.Experiment(
    "shakespeare",
    train.Config(
        data="python_stdlib",
        tokenizer="char",
        model=ModelConfig(
            context=64,
            rope=RopeConfig(base=100.0),
            activation="relu2",
            tied=False,
            init="fan-in-zero",
            unroll=4,
        ),
        optimizer=train.OptimizerConfig(
            kind="muon",
            learning_rate=0.01,
            weight_decay=0.0,
            momentum=0.8,
            beta2=0.99,
            adam_ratio=2.0,
            schedule=train.ScheduleConfig(kind="linear", warmup_steps=30, floor=0.0),
        ),
        steps=360,
        batch_size=12,
        eval_every=360,  # once, at the end: an evaluation of the whole held-out part takes as long as dozens of steps
        eval_batches=32,  # at most 262,144 characters
        log_every=20,
    ),
    description=__doc__,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
