"""GLM-130B's architecture and objective at 1.1M parameters: a model that fills blanks in Python source code, and continues it.

python experiments/glm_infill.py
"""

from research import train
from research.families import glm130b
from research.tasks.lm import LMConfig

EXPERIMENT = train.Experiment(
    "glm_infill",
    train.Config(
        data="python_stdlib",
        tokenizer="bpe:1024",
        model=glm130b.config(4, 128, 4, mlp_width=344, vocab_size=None, context=128, unroll=4),
        task=LMConfig(kind="infill"),
        optimizer=train.OptimizerConfig(
            learning_rate=3e-3,
            weight_decay=0.1,
            beta2=0.95,
            schedule=train.ScheduleConfig(kind="cosine", warmup_steps=50),
        ),
        steps=600,
        batch_size=16,
        eval_every=200,
        eval_batches=4,
        sample_every=200,
        sample_prompt="def ",
        sample_tokens=64,
    ),
    description=__doc__,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
