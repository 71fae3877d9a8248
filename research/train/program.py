"""A run before it runs: the config with its corpus, made into a mesh, shardings and the compiled functions of the loop."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import chips, host, sharding
from research.core import hypers as H
from research.core import params as P
from research.core.config import require
from research.core.errors import UserError
from research.data import batches, fim
from research.data.examples import Examples
from research.data.loader import ByIndex, ByStep, EvalBatches
from research.data.tokens import Corpus
from research.model import blanks, flops, moe, pipeline, transformer
from research.model.config import ModelConfig
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling
from research.tasks import infill, lm
from research.train import config as C
from research.train import hosts, replicas
from research.train import step as S

Weights = Callable[[jax.sharding.Mesh], P.Tree]
"""Reads a model's parameters in float32, spread over a mesh."""

# Of programs whose configs differ in traced numbers alone.
SHARED = (
    "specs", "n_params", "flops_per_token", "batches", "held_out", "held_out_text", "state_shardings", "init", "step", "eval_params",
    "jitted_step", "_evaluate",
)  # fmt: skip
EVAL_TOKENS = 8192  # about how many held-out tokens are evaluated at once


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Everything that is fixed once a run's config and corpus are known. What it compiles, it compiles when first used."""

    config: C.Config
    corpus: Corpus | Examples
    model: ModelConfig
    mesh: jax.sharding.Mesh
    hypers: H.Hypers
    weights: Weights | None = None  # what reads the first parameters; None: they are drawn

    @functools.cached_property
    def specs(self) -> P.Tree:
        return transformer.specs(self.model)

    @functools.cached_property
    def n_params(self) -> int:
        return P.count(self.specs)

    @functools.cached_property
    def flops_per_token(self) -> float:
        return flops.train_flops_per_token(self.model, self.config.row_tokens)

    @functools.cached_property
    def peak_flops(self) -> float:
        return chips.peak_flops()[0]

    def like(self, config: C.Config) -> "Program":
        """The program of a config that differs in traced numbers and in how long it runs. It shares what this one has compiled and what there is of
        the corpus. Raises ValueError for a config of another program."""
        if isinstance(self.corpus, Examples):
            config = dataclasses.replace(config, model=config.task.fitted(config.model, self.corpus))
        one, other = ({k: v for k, v in C.static(c).items() if k not in C.HOST_ONLY} for c in (self.config, config))
        if one != other:
            differing = sorted(name for name in one if one[name] != other[name])
            raise ValueError(f"configs that differ in {', '.join(differing)} share no compiled program")
        made = dataclasses.replace(self, config=config, hypers=C.hypers(config))
        own = {"batches"} if config.order_seed != self.config.order_seed else set()
        own |= {"held_out_text"} if isinstance(self.corpus, Examples) else set()
        kept = set(SHARED) - own
        made.__dict__.update({name: getattr(self, name) for name in kept})
        made.__dict__.update({name: self.__dict__[name] for name in ("compiled_step",) if name in self.__dict__})
        return made

    # -- data

    @functools.cached_property
    def text(self) -> Corpus:
        """The corpus of a task that reads text. Raises UserError for any other task."""
        if isinstance(self.corpus, Examples):
            raise UserError(
                f"task.kind is {self.config.task.kind!r}, whose examples are no text; this is for language models"
            )
        return self.corpus

    @functools.cached_property
    def batches(self) -> ByStep | fim.FilledIn | infill.Blanked:
        """This process's rows of every training batch."""
        config = self.config
        if config.fim_rate is not None:
            self._check_sentinels()
        text = batches.training(
            self.corpus, config.rows, config.batch_size, config.row_tokens, config.order_seed, config.damaged,
            config.fim_rate,
        )  # fmt: skip
        return self._posed(text, config.order_seed).rows(*sharding.row_part(self.mesh))

    def _check_sentinels(self) -> None:
        """Raises UserError where the tokeniser or the model lacks the ids that fill in the middle takes."""
        found = fim.sentinels_of(self.text.tokenizer)
        largest = max(found.prefix, found.middle, found.suffix, found.end or 0)
        if largest >= self.model.V:
            raise UserError(
                f"model.vocab_size is {self.model.V}, but fim_rate needs the id {largest}; leave vocab_size out"
            )

    def _posed(self, text: Any, seed: int) -> Any:
        """Batches of text as the task poses them."""
        ids, task = blanks.blank_ids(self.model), self.config.task
        if ids is None or not isinstance(task, lm.LMConfig):
            return text
        return infill.Blanked(text, ids, task.infill, seed)

    @functools.cached_property
    def held_out(self) -> ByIndex | infill.Blanked:
        """The held-out rows, some thousand tokens at a time, in rows that split over the devices."""
        config, shards = self.config, sharding.batch_shards(self.mesh)
        text = batches.held_out(
            self.corpus, config.rows, EVAL_TOKENS, config.row_tokens, shards, config.eval_batches, config.damaged
        )
        return self._posed(text, seed=0)

    @functools.cached_property
    def held_out_text(self) -> tuple[bytes, int]:
        """`(bytes, tokens)`: the text that evaluation scores, and how many tokens it is scored in, ends of blanks included."""
        held_out, corpus = self.held_out, self.text
        if (
            isinstance(held_out, EvalBatches)
            and corpus.eval.learned is None
            and len(held_out) * held_out.batch_size >= held_out.count
        ):
            return corpus.tokenizer.decode_bytes(np.asarray(corpus.eval.tokens)), len(corpus.eval) - 1
        tokens = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in held_out])
        return corpus.tokenizer.decode_bytes(tokens[tokens < corpus.tokenizer.vocab_size]), len(tokens)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A held-out loss in bits per byte of the text that it was measured on."""
        text, tokens = self.held_out_text
        return lm.bits_per_byte(nats_per_token, tokens, len(text))

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows as a global array, rows over the data axes."""
        return sharding.put_rows(batch, self.mesh)

    # -- functions

    @functools.cached_property
    def state_shardings(self) -> S.State:
        return S.state_shardings(
            jax.eval_shape(self.init_function, self.hypers), self.specs, self.mesh, self.config.zero
        )

    def init_function(self, hypers: H.Hypers) -> S.State:
        """The state before the first step, as a function to be transformed."""
        return S.init_state(self.specs, self.config.optimizer, hypers)

    @functools.cached_property
    def init(self) -> Any:
        """The jitted `init(hypers)`: the state before the first step."""
        return jax.jit(self.init_function, out_shardings=self.state_shardings, compiler_options=host.runs_once())

    def initial_state(self) -> S.State:
        """The state before the first step, its parameters drawn or read."""
        if self.weights is None:
            return self.init(self.hypers)
        start = jax.jit(
            lambda hypers, params: S.init_state(self.specs, self.config.optimizer, hypers, params=params),
            out_shardings=self.state_shardings, donate_argnums=1, compiler_options=host.runs_once(),
        )  # fmt: skip
        return start(self.hypers, self.weights(self.mesh))

    def abstract_state(self) -> S.State:
        """Shapes, dtypes and shardings of the state, for restoring."""
        shapes = jax.eval_shape(self.init_function, self.hypers)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.state_shardings
        )

    @functools.cached_property
    def step_function(self) -> Any:
        """`step(state, batch, hypers)` as a function to be transformed."""
        config, loss = self.config, self.config.task.make_loss(self.model)
        draws = self.model.dropout is not None or config.task.draws
        return S.make_step(loss, self.specs, config.optimizer, config.micro_batches, draws)

    @functools.cached_property
    def jitted_step(self) -> Any:
        """The same, for `on_mesh` to call: what is lowered for devices that are not there."""
        where, options = (self.state_shardings, None), host.runs_often(self.mesh.devices.flat[0].platform)
        return jax.jit(self.step_function, donate_argnums=0, out_shardings=where, compiler_options=options)

    @functools.cached_property
    def step(self) -> Any:
        """The jitted, donating `step(state, batch, hypers)`."""
        return self.on_mesh(self.jitted_step)

    @functools.cached_property
    def compiled_step(self) -> Any:
        """The same compiled before its first call, so that it can be asked what memory it takes."""
        batch = self.put_batch(self.batches(0))
        return self.on_mesh(self.jitted_step.lower)(self.abstract_state(), batch, self.hypers).compile()

    def on_mesh(self, function: Any) -> Any:
        """`function` called, and so traced, with this program's mesh in use."""

        def call(*args):
            with sharding.use(self.mesh, self.config.zero):
                return function(*args)

        return call

    @functools.cached_property
    def eval_params(self) -> Any:
        """Jitted: the parameters of a state that evaluation and sampling use."""
        return jax.jit(lambda state, hypers: S.eval_params(state, self.config.optimizer, self.specs, hypers))

    @functools.cached_property
    def _evaluate(self) -> Any:
        return self.on_mesh(jax.jit(self.config.task.make_evaluation(self.model)))

    def evaluate(self, state: S.State, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The held-out `loss` (of text: nats per token) and the task's metrics; None once `interrupted`, which is asked after every batch."""
        params, sums = self.eval_params(state, self.hypers), []
        for batch in self._local(self.held_out):
            sums.append(hosts.in_order(self._evaluate(params, self.put_batch(batch))))
            if len(sums) > 1:
                sums[-2] = jax.device_get(sums[-2])  # one batch stays in flight
            if interrupted():
                return None
        return self.measures({name: math.fsum(float(s[name]) for s in sums) for name in sums[0]})

    def measures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the sums of all held-out batches, `loss` first; of text also `bits_per_byte`."""
        found = self.config.task.measures(sums)
        if isinstance(self.corpus, Examples):
            return found
        return {**found, "bits_per_byte": self.bits_per_byte(found["loss"])}

    def predict(self, state: S.State, function: Callable[[Any, dict[str, jax.Array]], jax.Array]) -> np.ndarray:
        """`function(params, batch) -> (B, ...)` of every held-out example, in order: (examples, ...), on every process."""
        assert isinstance(self.held_out, ByIndex), "of examples"
        every = dataclasses.replace(self.held_out, limit_batches=None)  # pyright: ignore[reportArgumentType]
        params, whole = self.eval_params(state, self.hypers), sharding.replicated(self.mesh)
        predict = self.on_mesh(jax.jit(function, out_shardings=whole))
        batches_of = (self.put_batch(batch) for batch in self._local(every))
        return np.concatenate([np.asarray(hosts.in_order(predict(params, b))) for b in batches_of])[: every.count]

    def _local(self, rows: ByIndex | infill.Blanked) -> Iterator[dict[str, np.ndarray]]:
        return iter(rows.rows(*sharding.row_part(self.mesh)))

    def sample(self, state: S.State) -> str:
        """The config's prompt and what the model makes of it."""
        config = self.config
        sampling = Sampling(max_tokens=config.sample_tokens, temperature=0.8, seed=config.seed)
        model = Loaded(self.eval_params(state, self.hypers), self.model, self.text.tokenizer)
        return config.sample_prompt + continuations(model, [config.sample_prompt], sampling)[0].text

    def check_replicas(self, state: S.State) -> None:
        """Raises UserError, naming the device, where devices that hold the same part of a parameter hold different ones (`replicas.py`)."""
        specs = [leaf.spec for leaf in jax.tree.leaves(self.state_shardings.params)]
        found = np.asarray(self._sums_of_bits(jax.tree.leaves(state.params)))
        replicas.check(found, self.mesh, specs, list(P.flatten(self.specs)), int(state.step))

    @functools.cached_property
    def _sums_of_bits(self) -> Any:
        return replicas.sums(self.mesh, [leaf.spec for leaf in jax.tree.leaves(self.state_shardings.params)])

    def name_bad_rows(self, state: S.State, step: int) -> str:
        """Which rows of a step's batch (from 0, the batch of step 1 being the first) have a loss that is not finite, and whose they are. All
        processes call it."""
        batch = self.batches(step - 1)
        finite = np.asarray(
            hosts.in_order(self._rows_are_finite(self.eval_params(state, self.hypers), self.put_batch(batch)))
        )
        index, count = sharding.row_part(self.mesh)
        mine = range(index * len(finite) // count, (index + 1) * len(finite) // count)
        return hosts.name_rows([row for row in mine if not finite[row]])

    @functools.cached_property
    def _rows_are_finite(self) -> Any:
        """Jitted, in as many passes as the step: whether the loss of each row of a batch is finite, on every process."""
        rows, passes = self.config.task.make_row_losses(self.model), self.config.micro_batches

        def finite(params, batch):
            losses_PB = jax.lax.map(lambda part: rows(params, part), S.split_rows(batch, passes))
            return jnp.isfinite(losses_PB.T.reshape(-1))

        return self.on_mesh(jax.jit(finite, out_shardings=sharding.replicated(self.mesh)))

    def name_bad_leaf(self, index: int) -> str:
        """`metrics["bad_leaf"]` in words."""
        if index == S.LOSS_IS_BAD:
            return "the loss"
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.specs, is_leaf=P.is_param)]
        return "the gradient of " + "/".join(str(entry.key) for entry in paths[index])


def check_axes(model: ModelConfig, sizes: dict[str, int]) -> None:
    """Raises UserError where an axis that was asked for does not divide what it is there to spread."""
    kinds = {slot.feed_forward for slots, _ in model.segments for slot in slots}
    inner = {"dense": model.F, "moe": moe.expert_width(model)}
    spread = {
        "fsdp": {"width": model.width},
        "tensor": {
            "heads": model.heads,
            **{f"channels of a {kind} feed-forward": inner[kind] for kind in sorted(kinds)},
        },
        "expert": {"experts": model.moe.experts if "moe" in kinds else 0},
    }
    for axis, wanted in spread.items():
        for what, size in wanted.items():
            if sizes.get(axis, 1) > 1 and (size == 0 or size % sizes[axis]):
                found = "none" if size == 0 else str(size)
                said = f"{axis}={sizes[axis]} does not divide the model's {what} ({found})"
                raise UserError(f"{said}; use a divisor, or leave {axis} out of --mesh")


def check_single(config: C.Config) -> None:
    """Raises UserError for the mesh of a sweep, on which a run alone would be as many copies of itself."""
    if "member" in config.mesh:
        raise UserError(f"mesh {config.mesh!r}: member is for the members of a sweep; use another axis for a run alone")


def mesh_of(config: C.Config, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of a config over some devices, or those that are here. Raises UserError where its rows, their length or its layers cannot be split."""
    mesh, rows = sharding.make_mesh(config.mesh, devices), config.batch_size // config.micro_batches
    if config.mesh != "auto":
        check_axes(config.model, dict(mesh.shape))
    sharding.check_batch(rows, mesh, config.row_tokens)
    pipeline.check(config.model, dict(mesh.shape), rows)
    return mesh


def build(config: C.Config, corpus: Corpus | Examples, weights: Weights | None = None) -> Program:
    """The program of a config on the devices that are here. Raises UserError when they, or the data, do not fit it."""
    model = config.task.fitted(config.model, corpus)
    if isinstance(corpus, Examples):
        check_for_examples(config)
        config = dataclasses.replace(config, model=model)
    else:
        check_for_text(config, corpus)
    built = Program(config, corpus, model, mesh_of(config), C.hypers(config), weights)
    # a corpus that is too short, or a loss that the model cannot have, is refused before there is a run directory
    _ = built.batches, built.held_out, config.task.make_loss(model)
    return built


def check_for_text(config: C.Config, corpus: Corpus) -> None:
    """Raises UserError where a model that fills blanks is asked for what only others do."""
    masked = corpus.train.learned is not None
    if config.model.fills_blanks and (config.rows != "windows" or config.fim_rate is not None or masked):
        raise UserError(
            "a model that fills blanks learns them from windows of all the text; leave rows, fim_rate and learn out"
        )


def check_for_examples(config: C.Config) -> None:
    """Raises UserError where what only text has is asked of other data."""
    asked = {name: getattr(config, name) for name in ("learn", "clean", "fim_rate", "sample_every")}
    for name, value in asked.items():
        require(value is None, name, value, f"nothing: the task {config.task.kind!r} reads no running text")
    require(
        config.rows == "windows", "rows", config.rows, f"windows: the task {config.task.kind!r} reads no running text"
    )
