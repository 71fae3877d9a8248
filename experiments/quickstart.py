"""A language model of Python source code, from nothing to readable samples in about half a minute on 2 idle CPU cores.

    python experiments/quickstart.py

Data: the text of the Python standard library on this machine. Model: 0.9M parameters over 1,024 byte-pair tokens. Ends with the
held-out bits per byte beside two baselines measured on the same bytes, and what to run next.
"""

from research import train
from research.data import baselines
from research.model.config import ModelConfig

BASELINE_TOKENS = 4_000_000  # of the training part, for the order-2 model


def compare(result: train.Result) -> dict[str, float]:
    """The model beside gzip -9 and an order-2 byte model on the held-out bytes; prints a table and the next steps."""
    corpus, (text, _) = result.program.corpus, result.program.held_out_text
    seen = corpus.tokenizer.decode_bytes(corpus.train.tokens[:BASELINE_TOKENS])
    bits = {
        "bits_per_byte_gzip": baselines.gzip_bits_per_byte(text),
        "bits_per_byte_order2": baselines.order2_bits_per_byte(seen, text),
    }
    run = result.run.path
    print(f"""
Bits per byte on {len(text):,} held-out bytes (lower is better)
  this model              {result.summary["bits_per_byte"]:.3f}
  gzip -9                 {bits["bits_per_byte_gzip"]:.3f}
  order-2 byte model      {bits["bits_per_byte_order2"]:.3f}

Next
  research sample {run} --prompt "def main(" --max-tokens 200     continue a text of yours
  open {run}/report.html                                          curves and samples in a browser
  python experiments/quickstart.py --steps 3000 --run-dir runs/longer     train for longer
  python experiments/lm_tiny_text.py --data text:YOUR_FILE                the same on a text of yours
""")
    return bits


EXPERIMENT = train.Experiment(
    "quickstart",
    train.Config(
        data="tfds:python_stdlib",
        tokenizer="bpe:1024",
        model=ModelConfig(context=128, activation="relu2", init="fan-in", unroll=4),
        optimizer=train.OptimizerConfig(
            kind="muon",
            learning_rate=0.02,
            weight_decay=0.0,
            adam_ratio=0.3,
            schedule=train.ScheduleConfig(kind="linear", warmup_steps=20, floor=0.0),
        ),
        steps=300,
        batch_size=12,
        eval_every=100,
        eval_batches=4,
        checkpoint_every=100,
        log_every=25,
        sample_every=100,
        sample_prompt="def ",
        sample_tokens=64,
    ),
    description=__doc__,
    after=compare,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
