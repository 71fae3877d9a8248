"""A pretrained model goes on learning on a text of yours: the same loop, started from weights that are there.

    python experiments/quickstart.py                                                       # leaves runs/quickstart, the default to start from
    python experiments/finetune_text.py
    python experiments/finetune_text.py --init-from path/to/gpt2 --data text:PATH --sequence-length 256

`--init-from` takes a run directory, a folder in Hugging Face's layout or a hub id; model and tokeniser are those found there. Without --data:
Python's own language reference, as `help()` shows it. `research convert runs/finetune_text DIR` writes the result,
where a published family holds it, for transformers.
"""

import importlib.util

from research import train

REFERENCE = importlib.util.find_spec("pydoc_data.topics")

EXPERIMENT = train.Experiment(
    "finetune_text",
    train.Config(
        data=f"text:{REFERENCE.origin}" if REFERENCE else "python_stdlib",
        init_from="./runs/quickstart",
        optimizer=train.OptimizerConfig(
            learning_rate=3e-4,
            weight_decay=0.01,
            schedule=train.ScheduleConfig(kind="linear", warmup_steps=10, floor=0.0),
        ),
        steps=200,
        batch_size=8,
        sequence_length=128,
        eval_every=50,
        eval_batches=8,
        checkpoint_every=100,
        sample_every=100,
        sample_prompt="The ",
    ),
    description=__doc__,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
