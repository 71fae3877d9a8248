"""Characters of Shakespeare."""

from research import train
from research.model.config import ModelConfig

EXPERIMENT = train.Experiment(
    "shakespeare",
    train.Config(
        data="text:/work/shared/data/tinyshakespeare/input.txt",
        tokenizer="char",
        model=ModelConfig(context=64, width=128, layers=4, heads=4, unroll=4, mlp_width=512, activation="gelu-tanh"),
        optimizer=train.OptimizerConfig(
            learning_rate=1e-3, weight_decay=0.1, beta2=0.99, schedule=train.ScheduleConfig(warmup_steps=100)
        ),
        steps=200,
        batch_size=12,
        eval_every=100,
        checkpoint_every=100,
    ),
)
if __name__ == "__main__":
    train.main(EXPERIMENT)
