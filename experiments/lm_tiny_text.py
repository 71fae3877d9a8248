"""A small character-level language model of any text file: the quickstart's loop on a text of yours.

    python experiments/lm_tiny_text.py --data text:PATH

Without --data, the text of the Python standard library in bytes. The last tenth of a single file is held out. Use `--tokenizer bpe:2048` for
texts of more than a few megabytes, `--tokenizer byte` where the characters are many.
"""

from research import train
from research.model.config import ModelConfig

EXPERIMENT = train.Experiment(
    "lm_tiny_text",
    train.Config(
        data="python_stdlib",
        tokenizer="byte",
        model=ModelConfig(context=128, activation="gelu-tanh", unroll=4),
        optimizer=train.OptimizerConfig(learning_rate=3e-3, schedule=train.ScheduleConfig(warmup_steps=50)),
        steps=1000,
        batch_size=16,
        eval_every=250,
        eval_batches=16,
        sample_every=250,
    ),
    description=__doc__,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
