"""The peer: transformers' GPT2LMHeadModel trained by PyTorch, eagerly or compiled, as fast as its own options make it.

A side of `worker.py`; it may run under any interpreter with torch and transformers, so it imports nothing of this project. What the
peer is given: scaled-dot-product attention (on a GPU its flash kernels alone, under bfloat16 autocast), the fused tanh gelu, no
key-value cache, static shapes, the loss inside the compiled graph, gradients set to None, denormals flushed to zero, the fastest of
PyTorch's own implementations of AdamW and of clipping, measured at this shape, and no read of a result within the timed loop.
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

    return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peer python": platform.python_version()}}


def build(request):
    """`(facts, run)` for one shape: see `worker.py`. `request["mode"]` is eager or compiled."""
    import torch

    settle(torch, request)
    model = make_model(torch, request)
    batches = itertools.cycle(make_batches(torch, request))
    loss_of = make_loss(torch, model, request)
    update, names = fastest_update(torch, model, lambda: loss_of(*next(batches)), request)
    if request["mode"] == "compiled":
        loss_of = torch.compile(loss_of, dynamic=False)

    def run(steps):
        loss = None
        for _ in range(steps):
            loss = loss_of(*next(batches))
            loss.backward()
            update()
        return loss.item()  # waits for everything before it

    return {"params": sum(p.numel() for p in model.parameters()), **names}, run


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


def make_model(torch, request):
    """GPT-2 of the shape, without dropout, in float32 (the master weights)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=request["vocabulary"], n_positions=request["context"], n_embd=request["width"], n_layer=request["layers"],
        n_head=request["heads"], activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
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


def fastest_update(torch, model, loss, request):
    """`(update, its description)`: clip, step and clear the gradients, by what is fastest here among PyTorch's implementations."""
    params = list(model.parameters())
    loss().backward()
    synchronize = torch.cuda.synchronize if request["device"] == "cuda" else lambda: None

    def clip(foreach):
        return lambda: torch.nn.utils.clip_grad_norm_(params, request["clip_norm"], foreach=foreach)

    clips = {"foreach": clip(True), "per tensor": clip(False)}
    clip_name = min(clips, key=lambda name: seconds(clips[name], synchronize))
    kinds = {"fused": {"fused": True}, "foreach": {"foreach": True}, "per tensor": {"foreach": False}}

    def adamw(name):
        decayed = [p for p in params if p.ndim >= 2]
        others = [p for p in params if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": request["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        betas = (request["beta1"], request["beta2"])
        return torch.optim.AdamW(groups, lr=request["learning_rate"], betas=betas, eps=request["eps"], **kinds[name])

    kind_name = min(kinds, key=lambda name: seconds(adamw(name).step, synchronize))
    optimizer = adamw(kind_name)
    optimizer.zero_grad(set_to_none=True)

    def update():
        clips[clip_name]()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update, {"adamw": kind_name, "clipping": clip_name}


def seconds(function, synchronize, times=3):
    """The least time of a few calls, after one that is not counted."""
    function()
    best = float("inf")
    for _ in range(times):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        best = min(best, time.perf_counter() - began)
    return best
