"""The members of a group as they train: each through the one compiled step, one after the other or on a few host threads, or several at once,
`vmap`ped over their states.

A member that is looped, on a thread or not, has, bit for bit, the losses of `train.fit` on its config: it is the same compiled step, called with the
same batches. A member whose steps are refused `max_skipped` times in a row has diverged: it goes no further, and others never see its numbers.
"""

import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.core import host, sharding
from research.sweep.plan import Trial
from research.train import step as S
from research.train.program import Program

EVALUATING = (
    threading.Lock()
)  # one thread at a time: its rows are many enough to fill the processor, and the first compiles it for all
IN_FLIGHT = 32  # steps whose metrics are read together: the host runs ahead of the device by no more


@dataclasses.dataclass
class Member:
    """A trial as it trains. `state`: None before its first step and after its last. `seconds` are its share of the wall clock."""

    trial: Trial
    program: Program
    state: S.State | None = None
    step: int = 0
    diverged: bool = False
    seconds: float = 0.0
    train: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    evals: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    measures: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last of them, besides its loss
    rungs: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    @property
    def loss(self) -> float:
        """The last held-out loss in nats a token; infinite for a member that diverged or was not evaluated."""
        last = self.evals[-1][1] if self.evals and self.evals[-1][0] == self.step else math.inf
        return math.inf if self.diverged or math.isnan(last) else last

    def due(self, step: int) -> bool:
        """Whether it is evaluated after a step."""
        config = self.trial.config
        return step % config.eval_every == 0 or step == config.steps

    def took(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes in a step's metrics, scalars."""
        config = self.trial.config
        if self.diverged:
            return
        if step % config.log_every == 0 or step == config.steps:
            self.train.append((step, float(metrics["loss"])))
        if int(metrics["skipped_in_a_row"]) >= config.max_skipped:
            self.diverged, self.step = True, step

    def evaluated(self, measures: dict[str, float]) -> None:
        loss = measures["loss"]
        self.measures = {name: value for name, value in measures.items() if name != "loss"}
        self.evals.append((self.step, loss))
        self.diverged = self.diverged or not math.isfinite(loss)


def looped(members: Sequence[Member], until: int) -> None:
    """Trains members up to a step, each through the one compiled step and, if there are several, on a thread of its own, and evaluates them there. An
    interruption, or an error of one, ends all."""
    began = time.perf_counter()
    on_threads(lambda member, stopped: _alone(member, until, stopped), members)
    for member in members:
        member.seconds += (time.perf_counter() - began) / len(members)


def on_threads(work: Callable[[Any, Callable[[], bool]], None], items: Sequence[Any]) -> None:
    """`work(item, stopped)` for each item on a thread of its own, a single one on this. Once one has raised an exception, or this thread is
    interrupted, `stopped()` is true, the others are waited for, and the exception is raised."""
    stop = threading.Event()
    if len(items) == 1:
        return work(items[0], stop.is_set)
    with ThreadPoolExecutor(len(items)) as pool:
        try:
            begun = [pool.submit(work, item, stop.is_set) for item in items]
            wait(begun, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for one in begun:
        one.result()


def _alone(member: Member, until: int, stopped: Callable[[], bool]) -> None:
    program = member.program
    state = program.initial_state() if member.state is None else member.state
    pending: list[tuple[int, Any]] = []
    while member.step < until and not member.diverged and not stopped():
        batch = program.put_batch(program.batches(member.step))
        state, metrics = program.compiled_step(state, batch, program.hypers)
        member.step += 1
        pending.append((member.step, metrics))
        if member.due(member.step) or member.step == until or len(pending) == IN_FLIGHT:
            for step, values in jax.device_get(pending):
                member.took(step, values)
            pending = []
        if not member.diverged and (member.due(member.step) or member.step == until):
            with EVALUATING:
                found = program.evaluate(state, stopped)
            if found is not None:
                member.evaluated(found)
    member.state = state


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """A program over `width` members at once, whose arrays have a leading axis of members, spread over the devices. `shared`: whether they all
    take the same batches."""

    program: Program
    width: int
    shared: bool

    @functools.cached_property
    def _where(self) -> NamedSharding:
        """How a leading axis of members lies on the devices: evenly, without any communication."""
        axis = "member" if self.width % self.program.mesh.size == 0 and "member" in self.program.mesh.shape else None
        return NamedSharding(self.program.mesh, PartitionSpec(axis))

    def _mapped(self, function: Callable, axes: Any) -> Callable:
        """A function of one member over all. The mesh has the axis of members alone, so what is inside of a member is whole."""
        return jax.vmap(function, in_axes=axes, spmd_axis_name="member" if self.program.mesh.size > 1 else None)

    @functools.cached_property
    def init(self) -> Any:
        """`init(hypers)`: the states before the first step."""
        options = host.runs_once()
        return self.program.on_mesh(jax.jit(self._begin, out_shardings=self._where, compiler_options=options))

    @functools.cached_property
    def _begin(self) -> Callable:
        return self._mapped(self.program.init_function, (0,))

    @functools.cached_property
    def compiled_step(self) -> Any:
        """`step(states, batch, hypers) -> (states, metrics)`, the states donated, compiled before its first call."""
        function = self._mapped(self.program.step_function, (0, None if self.shared else 0, 0))
        jitted = jax.jit(
            function,
            donate_argnums=0,
            out_shardings=self._where,
            compiler_options=host.runs_often(jax.default_backend()),
        )
        programs = [self.program] * self.width
        hypers = self.hypers(programs)
        states = self.program.on_mesh(jax.eval_shape)(self._begin, hypers)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._where), states)
        return self.program.on_mesh(jitted.lower)(shapes, self.batch(programs, 0), hypers).compile()

    @functools.cached_property
    def _evaluate(self) -> Any:
        program = self.program
        evaluation = program.config.task.make_evaluation(program.model)

        def one(state, hypers, batch):
            params = S.eval_params(state, program.config.optimizer, program.specs, hypers)
            return evaluation(params, batch)

        return program.on_mesh(jax.jit(self._mapped(one, (0, 0, None))))

    def hypers(self, programs: Sequence[Program]) -> Any:
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *(one.hypers for one in programs)), self._where)

    def batch(self, programs: Sequence[Program], step: int) -> Any:
        """The batch of a step: of the first, where it is shared, else of each."""
        if self.shared:
            return self._whole(programs[0].batches(step))
        orders = {one.config.order_seed: one for one in programs}
        made = {seed: one.batches(step) for seed, one in orders.items()}
        rows = [made[one.config.order_seed] for one in programs]
        return jax.device_put({name: np.stack([row[name] for row in rows]) for name in rows[0]}, self._where)

    def evaluate(self, states: S.State, hypers: Any) -> list[dict[str, float]]:
        """Each member's mean held-out loss, and its task's metrics."""
        sums = [jax.device_get(self._evaluate(states, hypers, self._whole(batch))) for batch in self.program.held_out]
        total = {
            name: [math.fsum(one) for one in zip(*(s[name].tolist() for s in sums), strict=True)] for name in sums[0]
        }
        return [self.program.measures(dict(zip(total, one, strict=True))) for one in zip(*total.values(), strict=True)]

    def _whole(self, batch: Any) -> Any:
        return jax.device_put(batch, sharding.replicated(self.program.mesh))


def together(members: Sequence[Member], until: int, of: Together) -> None:
    """Trains members, all at the same step, up to another, and evaluates them there. Fewer than the width are filled up with repetitions of the
    last, which nobody looks at."""
    began, first = time.perf_counter(), members[0]
    filled = [*members, *[members[-1]] * (of.width - len(members))]
    programs = [member.program for member in filled]
    hypers = of.hypers(programs)
    states = of.init(hypers) if first.state is None else stacked([member.state for member in filled])
    step, pending = first.step, []
    while step < until and not all(member.diverged for member in members):
        states, metrics = of.compiled_step(states, of.batch(programs, step), hypers)
        step += 1
        pending.append((step, metrics))
        due = first.due(step) or step == until
        if due or len(pending) == IN_FLIGHT:
            for at, values in jax.device_get(pending):
                for place, member in enumerate(members):
                    member.took(at, {name: value[place] for name, value in values.items()})
            pending = []
        for member in members:
            member.step = step if not member.diverged else member.step
        if due:
            for member, found in zip(members, of.evaluate(states, hypers), strict=False):
                if not member.diverged:
                    member.evaluated(found)
    for member, state in zip(members, unstacked(states, len(members)), strict=True):
        member.state = state
        member.seconds += (time.perf_counter() - began) / len(members)


def stacked(states: Sequence[Any]) -> Any:
    """States one beside the other on a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstacked(states: Any, count: int) -> list[Any]:
    """The first so many states of a stack."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(count)]
