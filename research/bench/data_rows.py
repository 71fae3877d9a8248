"""What `research bench data` times besides training: rows of ours beside a peer or a limit on the same data, in turn.

| what | ours | peers |
| --- | --- | --- |
| batches | `batch(step)` to host memory, tokens/s | a plain read of the map in order, with and without `np.memmap`; `datasets`; grain |
| tokenising | a source to ids by split, MB/s | the tokenizers library called with the same texts |
| images | batches of decoded JPEG files, images/s | a loop that decodes one after the other |
| memory | the most resident memory while a generated corpus is prepared, MB | the most in the first quarter of the time |
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data.loader import Batches
from research.data.media_batches import MediaBatches, image_row
from research.data.sources import Source
from research.data.tables.spec import open_tables
from research.data.units import tokenised

Run = Callable[[], int]
"""Does some work and returns its amount: tokens, bytes, images."""

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
PEERS = {"datasets": "Hugging Face datasets", "grain": "grain"}


def row(
    what: str, unit: str, ours: list[float], peer: str, theirs: list[float] | None, note: str | None = None
) -> dict[str, Any]:
    """One row of JSON values; `ratio` is that of the medians."""
    mine, its = statistics.median(ours), None if theirs is None else statistics.median(theirs)
    return {
        "what": what, "unit": unit, "ours": mine, "peer": peer, "peer_rate": its, "ratio": None if its is None else mine / its,
        "ours_rounds": ours, "peer_rounds": theirs, "note": note,
    }  # fmt: skip


def in_turn(runs: dict[str, Run], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Amounts a second of every run in so many rounds, one after the other in each; before them each runs once."""
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            amount, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds / rounds or amount == 0:
                amount += run()
            rates[name].append(amount / took)
    return rates


def batches(
    ids: np.ndarray, folder: Path, batch_size: int, context: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Rows of `batch(step)`, shuffled, beside a plain read in order and what others shuffle."""
    ids.tofile(folder / "ids.bin")
    mapped = np.memmap(folder / "ids.bin", ids.dtype, "r")
    runs = {
        "ours": _taking(_steps(Batches(mapped, batch_size, context, 0))),
        "plain": _taking(_plain(mapped, batch_size, context)),
        "bare": _taking(_plain(mapped.view(np.ndarray), batch_size, context)),
    }
    notes: dict[str, str | None] = {}
    for name, make in (("datasets", _huggingface), ("grain", _grain)):
        try:
            runs[name] = _taking(make(mapped, folder, batch_size, context))
        except ImportError as error:
            notes[name] = f"{error.name} is not installed"
    rates = in_turn(runs, rounds, seconds)
    rows = [
        row("batches", "tokens/s", rates["ours"], "a plain sequential read", rates["plain"]),
        row("batches", "tokens/s", rates["ours"], "the same as a plain array", rates["bare"], "no np.memmap"),
    ]
    return rows + [
        row("batches", "tokens/s", rates["ours"], said, rates.get(name), notes.get(name))
        for name, said in PEERS.items()
    ]


def _taking(found: Iterator[int]) -> Run:
    return lambda: next(found)


def _steps(batches: Batches) -> Iterator[int]:
    step = 0
    while True:
        yield batches(step)["targets"].size
        step += 1


def _plain(ids: np.ndarray, batch_size: int, context: int) -> Iterator[int]:
    """Tokens and targets of rows one after the other, copied out of the map as int32."""
    at, size = 0, batch_size * context
    while True:
        at = at if at + size < len(ids) else 0
        tokens, targets = ids[at : at + size].astype(np.int32), ids[at + 1 : at + 1 + size].astype(np.int32)
        yield max(len(tokens), len(targets))
        at += size


def _windows(ids: np.ndarray, context: int) -> np.ndarray:
    count = len(ids) // (context + 1)
    return ids[: count * (context + 1)].reshape(count, context + 1)


def _huggingface(ids: np.ndarray, folder: Path, batch_size: int, context: int) -> Iterator[int]:
    """Rows saved with `save_to_disk`, memory-mapped again, shuffled, taken as NumPy batches."""
    datasets: Any = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"ids": list(_windows(ids, context))}).save_to_disk(folder / "datasets")
    rows = datasets.load_from_disk(folder / "datasets").shuffle(seed=0).with_format("numpy")

    def endless() -> Iterator[int]:
        while True:
            for batch in rows.iter(batch_size, drop_last_batch=True):
                yield np.asarray(batch["ids"], np.int32)[:, 1:].size

    return endless()


def _grain(ids: np.ndarray, folder: Path, batch_size: int, context: int) -> Iterator[int]:
    """Windows of the map as a source with random access, shuffled by index, batched, read by its threads."""
    grain: Any = importlib.import_module("grain")
    rows = grain.MapDataset.source(_windows(ids, context)).shuffle(seed=0).repeat()
    batched = rows.map(lambda one: np.asarray(one, np.int32)).batch(batch_size, drop_remainder=True).to_iter_dataset()
    return (batch[:, 1:].size for batch in batched)


def tokenising(source: Source, tokenizer: Any, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row of a source's texts to ids, beside the library by itself."""
    rows = [one for unit in source.units for one in source.rows(unit)]
    texts, size = [one.text for one in rows], sum(len(one.text.encode()) for one in rows)

    def ours() -> int:
        tokenised(iter(rows), tokenizer, np.dtype(np.uint16), lambda _: None)
        return size

    def library() -> int:
        np.concatenate(
            [np.array(one.ids, np.uint16) for one in tokenizer.library.encode_batch(texts, add_special_tokens=False)]
        )
        return size

    rates = in_turn({"ours": ours, "library": library}, rounds, seconds)
    mega = {name: [rate / 1e6 for rate in found] for name, found in rates.items()}
    return [row("tokenising", "MB/s", mega["ours"], "tokenizers, encode_batch", mega["library"])]


def images(folder: Path, count: int, size: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row of batches of JPEG files, of twice the size as photographs are, beside a loop that reads and decodes them one after the other."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(count):
        path = folder / "images" / str(i % 4) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = draw.integers(0, 255, (size // 4, size // 4, 3), np.uint8)
        Image.fromarray(rough).resize((2 * size, 2 * size), Image.Resampling.BICUBIC).save(path, quality=90)
    table = open_tables(f"images:{folder / 'images'}")["all"]
    taken, step = MediaBatches(table, count, size, seed=0), 0

    def ours() -> int:
        nonlocal step
        step += 1
        return len(taken(step)["image"])

    def loop() -> int:
        return len(np.stack([image_row(table.record(i)["image"], size, "")["image"] for i in range(count)]))

    rates = in_turn({"ours": ours, "loop": loop}, rounds, seconds)
    return [row("images", "images/s", rates["ours"], "a plain decode loop", rates["loop"])]


def memory(folder: Path, gigabytes: float) -> list[dict[str, Any]]:
    """A row of the resident memory of a process that prepares a generated corpus of so many gigabytes of JSONL."""
    import psutil

    path = folder / "generated.jsonl"
    generate(path, int(gigabytes * 1e9))
    child = subprocess.Popen([sys.executable, "-c", _PREPARE, str(path), str(folder / "cache")])
    seen = []
    while child.poll() is None:
        try:
            seen.append((time.perf_counter(), psutil.Process(child.pid).memory_info().rss / 1e6))
        except psutil.Error:
            break
        time.sleep(0.05)
    if child.wait() != 0:
        raise RuntimeError(f"preparing {path} ended with {child.returncode}")
    begin, end = seen[0][0], seen[-1][0]
    early = max(size for at, size in seen if at <= begin + (end - begin) / 4)
    note = f"{path.stat().st_size / 1e9:.2f} GB in {end - begin:.1f} s"
    return [
        row(
            "memory",
            "MB resident",
            [max(size for _, size in seen)],
            "its most in the first quarter of the time",
            [early],
            note,
        )
    ]


_PREPARE = """
import sys
from research.data.tokens import prepare
prepare(f"jsonl:{sys.argv[1]}", "byte", cache_dir=sys.argv[2], progress=lambda *_: None)
"""


def generate(path: Path, size: int) -> None:
    """Writes about `size` bytes of JSONL whose lines have several lengths."""
    draw = np.random.default_rng(0)
    block = "".join(
        json.dumps({"id": i, "text": " ".join(draw.choice(WORDS, int(draw.integers(5, 400))))}) + "\n"
        for i in range(1000)
    ).encode()
    with open(path, "wb") as file:
        for number in range(max(1, size // len(block))):
            file.write(block.replace(b"alpha", f"a{number:04d}".encode()))
