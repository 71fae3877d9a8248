"""Writes expectations.npz and expectations.json beside this file: what transformers (and references.py) compute for every case of cases.py.

    pip install -e '.[parity]' && python tests/families/make_expectations.py

For each case: config.json as transformers writes it, names and shapes of the stored tensors, logits at every fourth position, and 64
greedy tokens. The weights come from `cases.weights`, so the files stay small. Made with torch 2.13 and transformers 5.24.
"""

import json
import tempfile
from pathlib import Path

import cases
import numpy as np
import references

HERE = Path(__file__).resolve().parent
STEP = 4


def from_transformers(name: str) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """`(config, shapes, logits (B, T, V), greedy tokens (B, NEW))` of a case."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    config = transformers.AutoConfig.for_model(**cases.CASES[name])
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        shapes = {key: value.shape for key, value in load_file(file).items()}
        save_file(cases.tensors(name, shapes), file, {"format": "pt"})
        model = (
            transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", experts_implementation="eager"
            )
            .float()
            .eval()
        )
        written = json.loads((Path(folder) / "config.json").read_text())
    prompt = torch.tensor(cases.tokens(model.config.vocab_size).astype(np.int64))
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(prompt).logits.numpy()
        out = model.generate(
            prompt, max_new_tokens=cases.NEW, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0
        )
    return written, shapes, logits, out[:, cases.T :].numpy()


def from_reference(name: str) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """The same for ChatGLM, which transformers lacks."""
    config = cases.CASES[name]
    shapes = references.chatglm_shapes(config)
    stored = cases.tensors(name, shapes)
    rows = [list(row) for row in cases.tokens(config["padded_vocab_size"])]
    logits = np.stack([references.chatglm(stored, config, np.array(row)) for row in rows])
    for _ in range(cases.NEW):
        for row in rows:
            row.append(int(references.chatglm(stored, config, np.array(row))[-1].argmax()))
    return config, shapes, logits, np.array(rows)[:, cases.T :]


def main() -> None:
    arrays, described = {}, {}
    for name, case in cases.CASES.items():
        make = from_reference if case["model_type"] == "chatglm" else from_transformers
        config, shapes, logits, greedy = make(name)
        arrays[name] = logits[:, ::STEP].astype(np.float32)
        described[name] = {"config": config, "shapes": shapes, "greedy": greedy.tolist()}
        print(name, f"logits of deviation {logits.std():.2f}")
    np.savez_compressed(HERE / "expectations.npz", **arrays)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in described.items()]
    (HERE / "expectations.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
