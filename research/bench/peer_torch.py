"""The peer: transformers' GPT2LMHeadModel trained by PyTorch, eagerly or compiled, as fast as its own options make it.

A side of `worker.py`; it may run under any interpreter with torch and transformers, so it imports nothing of this project. What the
peer is given: static shapes, the loss inside the compiled graph, the fused tanh gelu, no key-value cache, gradients set to None,
denormals flushed to zero, no read of a result within the timed loop, and the fastest of PyTorch's own implementations of attention, AdamW and
clipping, measured at this shape. On a GPU: bfloat16 autocast, and attention by the flash kernels alone.
"""

import contextlib
import itertools
import platform
import time

BATCHES = 8


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
    """`(facts, run)` for one shape: see `worker.py`. `request["mode"]` is eager or compiled."""
    import torch

    settle(torch, request)
    batches = itertools.cycle(make_batches(torch, request))
    model, loss_of, facts = fastest_model(torch, batches, request)
    loss_of(*next(batches)).backward()
    update, names = fastest_update(torch, model, request)

    def run(steps):
        loss = None
        for _ in range(steps):
            loss = loss_of(*next(batches))
            loss.backward()
            update()
        assert loss is not None
        return loss.item()  # waits for everything before it

    return {"params": sum(p.numel() for p in model.parameters()), **facts, **names}, run


def settle(torch, request):
    """What holds for the whole process. Raises RuntimeError where the GPU is asked for and not seen."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    if request["device"] == "cpu":
        torch.set_num_threads(request["threads"])
        return
    if not torch.cuda.is_available():
        raise RuntimeError("this PyTorch sees no GPU")
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def fastest_model(torch, batches, request):
    """`(model, its loss, facts)` with the attention that goes forward and back in the least time; on a GPU it is given: flash."""
    tried = []
    for attention in ("sdpa", "eager") if request["device"] == "cpu" else ("sdpa",):
        model = make_model(torch, attention, request)
        loss_of = make_loss(torch, model, request)
        if request["mode"] == "compiled":
            loss_of = torch.compile(loss_of, dynamic=False)

        def forward_and_back(model=model, loss_of=loss_of):
            loss_of(*next(batches)).backward()
            model.zero_grad(set_to_none=True)

        first, least = seconds(torch, forward_and_back, request)
        facts = {"attention": attention, "compile_seconds": max(0.0, first - least)}
        tried.append((least, model, loss_of, facts))
    return min(tried, key=lambda one: one[0])[1:]


def make_model(torch, attention, request):
    """GPT-2 of the shape, without dropout, in float32 (the master weights)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=request["vocabulary"], n_positions=request["context"], n_embd=request["width"], n_layer=request["layers"],
        n_head=request["heads"], activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, bos_token_id=0, eos_token_id=0, **{"attn_implementation": attention},
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(request["device"]).train()


def make_batches(torch, request):
    """A few batches of random tokens and their targets, on the device."""
    shape = (request["batch_size"], request["context"])

    def draw():
        return torch.randint(request["vocabulary"], shape, device=request["device"])

    return [(draw(), draw()) for _ in range(BATCHES)]


def make_loss(torch, model, request):
    """`loss_of(tokens, targets)`: the mean cross-entropy of a batch."""
    half = request["dtype"] == "bfloat16"

    def loss_of(tokens, targets):
        with torch.autocast(request["device"], torch.bfloat16) if half else contextlib.nullcontext():
            logits = model(tokens, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return loss_of


def fastest_update(torch, model, request):
    """`(update, facts)`: clip, step and clear the gradients, which must be there, by what is fastest among PyTorch's implementations."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": request["weight_decay"]},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    rest = {"lr": request["learning_rate"], "betas": (request["beta1"], request["beta2"]), "eps": request["eps"]}
    clips = {"foreach": {"foreach": True}, "per tensor": {"foreach": False}}
    kinds = {"fused": {"fused": True}, **clips}

    def clip(name):
        return torch.nn.utils.clip_grad_norm_(params, request["clip_norm"], **clips[name])

    def adamw(name):
        return torch.optim.AdamW([dict(group) for group in groups], **rest, **kinds[name])

    clip_name = min(clips, key=lambda name: seconds(torch, lambda: clip(name), request)[1])
    kind_name = min(kinds, key=lambda name: seconds(torch, adamw(name).step, request)[1])
    optimizer = adamw(kind_name)
    optimizer.zero_grad(set_to_none=True)

    def update():
        clip(clip_name)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update, {"adamw": kind_name, "clipping": clip_name}


def seconds(torch, function, request, times=3):
    """`(seconds of the first call, the least of the next few)`."""
    took = []
    for _ in range(1 + times):
        began = time.perf_counter()
        function()
        if request["device"] == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return took[0], min(took[1:])
