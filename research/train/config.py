"""What a run is, as one frozen record: the experiment's config, its identity, and how it was asked to run."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from research.core import config as C
from research.core import hypers as H
from research.core.config import require
from research.core.errors import UserError
from research.model.config import ModelConfig
from research.tasks.lm import LMConfig
from research.tasks.task import TaskConfig, of_kind
from research.train.optim import OptimizerConfig
from research.train.trackers import TrackerName


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Lengths in optimiser steps, rows or tokens; None turns a thing off unless its comment says otherwise."""

    data: str = "python_stdlib"  # python_stdlib, text:PATH, jsonl:PATH, csv:PATH, pairs:A,B, tfds:NAME, mix:FILE.json, ..., or a path (docs/data.md)
    # of records: the field that holds the text, or a text with fields in braces; None: text
    text_field: str | None = None
    # of a text_field with braces: the fields that are learned, with commas; the rest is only read; None: all
    learn: str | None = None
    clean: str | None = None  # plain, gopher, c4 or fineweb: clean the texts before they are tokenised
    tokenizer: str | None = None  # byte, char, bpe:SIZE, a tokenizer.json or its folder; None: init_from's, else byte
    model: ModelConfig = ModelConfig()
    init_from: str | None = None  # a run, a Hugging Face folder or a hub id: begin with its weights, model, tokeniser
    task: TaskConfig = LMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000  # optimiser steps
    batch_size: int = 16  # rows in one optimiser step
    sequence_length: int | None = None  # tokens of a row; None: model.context
    # of all documents one after the other; packed: of whole documents, each seen by itself
    rows: Literal["windows", "packed"] = "windows"
    fim_rate: float | None = None  # share of the documents that are rearranged to fill in the middle, in training
    micro_batches: int = 1  # passes that one batch is split into
    seed: int = 0  # initial weights, dropout and order of the data
    data_seed: int | None = None  # order of the data; None: seed
    init_scale: float = 1.0  # multiplies every random initial value
    # auto: every device under fsdp, slices under data (research plan: searched for); or data=2,fsdp=4
    mesh: str = "auto"
    # what is spread over fsdp: 3, parameters, gradients and the optimiser's state; 1, all but the parameters
    zero: Literal[1, 3] = 3
    eval_every: int = 100  # steps between evaluations
    eval_batches: int | None = None  # None: the whole held-out part
    checkpoint_every: int = 500  # steps between checkpoints
    checkpoint_minutes: float | None = None  # besides, so many minutes after the last one
    keep_last: int = 2  # checkpoints
    keep_every: int | None = None  # besides the last and the best, every n-th step
    log_every: int = 10  # steps between records of the metrics
    sample_every: int | None = None  # None: no samples
    sample_prompt: str = "\n"  # what samples go on from
    sample_tokens: int = 100  # length of a sample
    max_tokens: int | None = None  # training tokens after which the run ends
    max_seconds: float | None = None  # wall clock of training, evaluations included, over all resumptions
    target_loss: float | None = None  # held-out loss in nats per token
    patience: int | None = None  # evaluations in a row without improvement
    max_skipped: int = 10  # non-finite steps in a row
    # steps between comparisons of the parameters of devices that hold the same ones; None: never
    check_replicas_every: int | None = None
    prefetch: int = 2  # batches that are ready ahead of the step
    damaged: Literal["fatal", "skip"] = "fatal"  # what a row in a damaged shard is: the end of the run, or of weight 0
    trackers: tuple[TrackerName, ...] = ()  # besides the run directory
    run_dir: str | None = None  # None: runs/NAME

    def __post_init__(self):
        for name in ("steps", "batch_size", "micro_batches", "eval_every", "checkpoint_every", "keep_last", "log_every",
                     "sample_tokens", "max_skipped", "prefetch"):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in (
            "sequence_length",
            "eval_batches",
            "keep_every",
            "sample_every",
            "max_tokens",
            "max_seconds",
            "patience",
            "checkpoint_minutes",
            "check_replicas_every",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")
        learned, context = self.model.positions == "learned", self.model.length
        fits = not learned or self.row_tokens <= context
        require(
            fits, "sequence_length", self.sequence_length, f"at most model.context {context}: positions are learned"
        )
        adafactor = self.optimizer.kind == "adafactor" and self.model.base_width not in (None, self.model.width)
        require(
            not adafactor,
            "model.base_width",
            self.model.base_width,
            "None: adafactor's rates are relative to the weights",
        )
        rate = self.fim_rate
        require(rate is None or 0 < rate <= 1, "fim_rate", rate, "a share above 0 and at most 1")
        require(self.rows in ("windows", "packed"), "rows", self.rows, "windows or packed")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 2**32, name, value, "a whole number in [0, 2^32)")
        require(
            self.batch_size % self.micro_batches == 0,
            "micro_batches",
            self.micro_batches,
            f"a divisor of batch size {self.batch_size}",
        )

    @property
    def row_tokens(self) -> int:
        """Tokens of a row of a batch."""
        return self.model.length if self.sequence_length is None else self.sequence_length

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_size * self.row_tokens

    @property
    def order_seed(self) -> int:
        """What the order of the data is drawn from."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def horizon(self) -> int:
        """The step at which the schedule ends: its own, or the run's last."""
        return self.steps if self.optimizer.schedule.horizon is None else self.optimizer.schedule.horizon


def from_dict(values: dict[str, Any], source: str) -> Config:
    """A config of plain JSON values, as a run's config.json has it. Raises UserError, naming `source`, for what it cannot be."""
    task = values.get("task")
    kind = task.get("kind", LMConfig.kind) if isinstance(task, dict) else LMConfig.kind
    return C.set_values(Config(task=of_kind(kind)()), values, source)


# What a run does on the host alone, beside its steps.
HOST_ONLY = {
    "steps", "eval_every", "checkpoint_every", "keep_last", "keep_every", "log_every", "sample_every", "sample_prompt", "sample_tokens",
    "max_tokens", "max_seconds", "target_loss", "patience", "max_skipped", "prefetch", "trackers", "run_dir", "checkpoint_minutes",
    "check_replicas_every",
}  # fmt: skip
# What may differ between a run and its resumption. Everything else is its identity and must agree.
FREE = HOST_ONLY | {
    "mesh",
    "zero",
    "eval_batches",
    "damaged",
    "model.attention",
    "model.unroll",
    "model.remat",
    "model.pipeline_rounds",
    "model.pipeline_microbatches",
    "task.head_tile",
}


def identity(config: Config, **fingerprints: str) -> dict[str, Any]:
    """The fields that must agree to resume, by dotted name, with the fingerprints of data and tokeniser.

    `data` itself is not among them: what the text is counts, not where it lies. The schedule's horizon is, since it shapes every
    rate, so a cosine run goes on beyond its `steps` only by naming its horizon from the start.
    """
    fields = {
        name: value for name, value in C.flat(C.to_dict(config)).items() if name not in FREE | {"data", "tokenizer"}
    }
    ends = config.optimizer.schedule.kind in ("cosine", "linear", "wsd")
    return {**fields, "optimizer.schedule.horizon": config.horizon if ends else None, **fingerprints}


# What the compiled program takes as numbers: configs that differ in nothing else share it. Of a switch, None, which turns a thing off, is
# another program; its numbers are not.
TRACED = {
    "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "optimizer.eps",
    "optimizer.adam_ratio", "optimizer.schedule.warmup_steps", "optimizer.schedule.horizon", "optimizer.schedule.floor",
    "optimizer.schedule.cooldown", "init_scale", "seed", "data_seed",
}  # fmt: skip
SWITCHES = {
    "optimizer.clip_norm", "optimizer.ema_decay", "model.dropout", "task.label_smoothing", "task.z_loss", "task.balance_loss",
    "task.router_z_loss",
}  # fmt: skip


def static(config: Config) -> dict[str, Any]:
    """What a config says besides its traced numbers, by dotted name: equal for configs whose runs one compiled step serves."""
    fields = C.flat(C.to_dict(config))
    return {name: value is None if name in SWITCHES else value for name, value in fields.items() if name not in TRACED}


def hypers(config: Config) -> H.Hypers:
    """The config's traced numbers. What the config turns off has a value that does nothing."""
    opt, schedule = config.optimizer, config.optimizer.schedule
    return H.make(
        learning_rate=opt.learning_rate, warmup_steps=schedule.warmup_steps, horizon=config.horizon, floor=schedule.floor,
        cooldown=schedule.cooldown, weight_decay=opt.weight_decay, momentum=opt.momentum, beta1=opt.beta1, beta2=opt.beta2, eps=opt.eps,
        adam_ratio=opt.adam_ratio, clip_norm=float("inf") if opt.clip_norm is None else opt.clip_norm, ema_decay=opt.ema_decay or 0.0,
        dropout=config.model.dropout or 0.0, label_smoothing=config.task.label_smoothing or 0.0, z_loss=config.task.z_loss or 0.0,
        balance_loss=config.task.balance_loss or 0.0, router_z_loss=config.task.router_z_loss or 0.0,
        init_scale=config.init_scale, seed=config.seed,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A named config. `after(result) -> dict` may report on the finished run; what it returns joins the run's JSON."""

    name: str
    config: Config
    description: str = ""
    after: Callable[[Any], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line of an experiment: the config's fields by their own names, and how to run."""

    experiment: Annotated[Config, tyro.conf.arg(name="")]
    config: str | None = None  # start from this JSON: a run's config.json, or an object of config fields
    resume: bool = True  # go on with a run directory that exists; --no-resume: refuse
    fresh: bool = False  # delete the run directory first
    # one of several processes, which find each other as the cluster tells them, or by the three below
    distributed: bool = False
    coordinator: str | None = None  # HOST:PORT of the first process
    num_processes: int | None = None  # how many there are
    process_id: int | None = None  # from 0
    heartbeat: int = 30  # seconds after which a silent process is taken for dead, and the others end
    # seconds without the end of a step after which the process ends with code 75, its stacks shown
    step_timeout: float | None = None
    profile: str | None = None  # A:B writes a trace of those steps into the run directory
    print_config: bool = False  # print the config as JSON and stop
    json: bool = False  # the last line of standard output is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    flattened = ("experiment",)

    def __post_init__(self):
        self.profiled()
        timeout = self.step_timeout
        require(timeout is None or 0 < timeout < float("inf"), "step_timeout", timeout, "a number of seconds above 0")
        placed = self.coordinator is not None or self.num_processes is not None or self.process_id is not None
        require(self.distributed or not placed, "coordinator", self.coordinator, "nothing without --distributed")

    def profiled(self) -> tuple[int, int] | None:
        """The steps `[A, B)` to trace. Raises UserError for anything but `A:B` with A < B, A within the run."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UserError(f"--profile is {self.profile!r}; expected FIRST:LAST, as in 10:15")
        if int(first) >= self.experiment.steps:
            raise UserError(f"--profile {self.profile} begins after the last of {self.experiment.steps} steps")
        return int(first), int(last)
