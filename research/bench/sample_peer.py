"""The peer of `research bench sample`: transformers' GPT2LMHeadModel and its `generate`, greedily, with its default or its static cache.

A side of `worker.py`; it may run under any interpreter with torch and transformers, so it imports nothing of this project.
"""

import platform
import statistics
import time
from typing import Any

PROMPT_ROUNDS = 5


def about():
    """Versions. Raises ImportError where torch or transformers is not installed."""
    import torch
    import transformers

    return {
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peer python": platform.python_version(),
        }
    }


def build(request):
    """`(facts, run)` for one batch: see `worker.py`. `request["cache"]` is default or static."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if request["device"] == "cpu":
        torch.set_num_threads(request["threads"])
    elif not torch.cuda.is_available():
        raise RuntimeError("this PyTorch sees no GPU")
    config = transformers.GPT2Config(
        n_layer=request["layers"], n_embd=request["width"], n_head=request["heads"], vocab_size=request["vocabulary"],
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    dtype = torch.float32 if request["device"] == "cpu" else torch.bfloat16
    model: Any = transformers.GPT2LMHeadModel(config).to(request["device"], dtype).eval()
    prompts = torch.randint(request["vocabulary"], (request["batch"], request["prompt"]), device=request["device"])
    static = {"cache_implementation": "static"} if request["cache"] == "static" else {}

    def generate(tokens):
        with torch.inference_mode():
            out = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
                pad_token_id=0, **static,
            )  # fmt: skip
        if out.shape[1] != request["prompt"] + tokens:
            raise RuntimeError(f"{out.shape[1] - request['prompt']} tokens came where {tokens} were asked for")
        return float(out[:, -1].sum())  # waits for everything before it

    began = time.perf_counter()
    generate(request["new"])
    compile_seconds = time.perf_counter() - began
    generate(1)
    taken = []
    for _ in range(PROMPT_ROUNDS):
        began = time.perf_counter()
        generate(1)
        taken.append(time.perf_counter() - began)
    facts = {
        "params": sum(p.numel() for p in model.parameters()),
        "prompt_seconds": statistics.median(taken),
        "compile_seconds": compile_seconds,
    }

    def run(steps):
        return sum(generate(request["new"]) for _ in range(steps))

    return facts, run
