"""A sweep: five learning rates and two weight decays, three seeds each, of a small model of Python source code; one compiled program.

    python experiments/sweep_learning_rate.py
    python experiments/sweep_learning_rate.py optimizer.schedule.warmup_steps=0,50 --search halving

The same from the command line: `research sweep lm_tiny_text optimizer.learning_rate=log:1e-3:3e-2:5 optimizer.weight_decay=0,0.1 --seeds 3`.
"""

from research import sweep, train
from research.model.config import ModelConfig

SWEEP = sweep.Sweep(
    base=train.Config(
        tokenizer="byte",
        model=ModelConfig(context=64, width=64, layers=2, heads=4, activation="gelu-tanh", unroll=2),
        optimizer=train.OptimizerConfig(schedule=train.ScheduleConfig(warmup_steps=20)),
        steps=200,
        batch_size=16,
        eval_every=100,
        eval_batches=8,
    ),
    space={"optimizer.learning_rate": "log:1e-3:3e-2:5", "optimizer.weight_decay": [0.0, 0.1]},
    seeds=3,
    name="sweep_learning_rate",
)

if __name__ == "__main__":
    sweep.main(SWEEP)
