"""A small language model of any Chinese text, from nothing: it continues a Chinese prompt in Chinese.

    python experiments/chinese_text.py --data text:PATH [--sample-prompt 明月]
    research sample runs/chinese_text --prompt 明月 --max-tokens 60 --temperature 0.8

PATH is a text file in UTF-8; the last tenth is held out. Of a collection in JSON (such as chinese-poetry's Song lyrics), first make a text:

    python -c "import json, pathlib; files = sorted(pathlib.Path('.').glob('ci.song.*.json'))
    poems = ['\\n'.join(p['paragraphs']) for f in files for p in json.loads(f.read_text(encoding='utf-8'))]
    pathlib.Path('poems.txt').write_text('\\n\\n'.join(poems), encoding='utf-8')"

Tokens are bytes in UTF-8 joined by frequency, so that any character can be written and read; common ones are a token each.

As measured on 2 CPU cores (AMD EPYC), 2026-11-26, on 7,000 Song lyrics (625,768 characters, 1.57M parameters): 7.49 bits per character on the
62,577 that were held out, after 800 steps (6.5 minutes beside other work). A continuation:

    明月，竹外精神。

    香未入他归否。
    便疑是、随衢酒，此言踪。
    若会无人事，何处说江山。
"""

import math

from research import train
from research.model.config import ModelConfig


def per_character(result: train.Result) -> dict[str, float]:
    """The held-out loss in bits per character, beside that of bytes, and a continuation."""
    text, _ = result.program.held_out_text
    characters = len(text.decode("utf-8", errors="replace"))
    bits = result.summary["bits_per_byte"] * len(text) / characters
    print(f"\n{bits:.3f} bits per character on {characters:,} held-out characters (a uniform choice of {result.program.model.V:,} tokens: "
          f"{math.log2(result.program.model.V):.1f} a token)\n\n{result.program.sample(result.state)}")  # fmt: skip
    return {"bits_per_character": bits}


EXPERIMENT = train.Experiment(
    "chinese_text",
    train.Config(
        data="text:chinese.txt",
        tokenizer="bpe:6144",
        model=ModelConfig(context=128, activation="relu2", init="fan-in", unroll=4),
        optimizer=train.OptimizerConfig(
            kind="muon",
            learning_rate=0.02,
            weight_decay=0.0,
            adam_ratio=0.3,
            schedule=train.ScheduleConfig(kind="linear", warmup_steps=20, floor=0.0),
        ),
        steps=800,
        batch_size=12,
        eval_every=200,
        eval_batches=8,
        checkpoint_every=400,
        sample_every=200,
        sample_prompt="明月",
        sample_tokens=60,
    ),
    description=__doc__,
    after=per_character,
)

if __name__ == "__main__":
    train.main(EXPERIMENT)
