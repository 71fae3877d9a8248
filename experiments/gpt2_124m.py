"""GPT-2 small, 124,439,808 parameters, with the published recipe of its reproductions: AdamW, cosine from 6e-4 to 6e-5, half a million
tokens a step.

    python experiments/gpt2_124m.py --data text:FOLDER                          # one GPU or more: 491,520 tokens a step
    python experiments/gpt2_124m.py --steps 3 --batch-size 2 --micro-batches 1 --model.context 256   # a look on a CPU

Sources: "Language Models are Unsupervised Multitask Learners" (2019) for the architecture; the rates, batch and 600,000 steps that nanoGPT
publishes for it, whose result there is a held-out loss of about 2.85 on OpenWebText. `--tokenizer` takes GPT-2's own tokenizer.json; the
default trains a byte-pair vocabulary on the data.
"""

from research import train
from research.families import gpt2

EXPERIMENT = train.Experiment(
    "gpt2_124m",
    train.Config(
        data="python_stdlib",
        tokenizer="bpe:8192",
        model=gpt2.config(12, 768, 12),
        optimizer=train.OptimizerConfig(
            learning_rate=6e-4,
            weight_decay=0.1,
            beta2=0.95,
            clip_norm=1.0,
            schedule=train.ScheduleConfig(kind="cosine", warmup_steps=2000, horizon=600_000, floor=0.1),
        ),
        steps=600_000,
        batch_size=480,
        micro_batches=40,
        eval_every=1000,
        eval_batches=200,
        checkpoint_every=1000,
    ),
    description=__doc__,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
