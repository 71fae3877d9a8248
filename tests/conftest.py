"""Settings of the whole suite, made before JAX starts: CPU, quick compiles, strict arrays, a cache folder of its own.

Programs here are tiny and run a few times, so compiling them costs more than running them: without the compiler's optimisations the
suite takes a fraction of the time. Processes that a test starts inherit the environment; one that wants the real thing sets its own.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA aborts on a flag that it does not know
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
CACHE = tempfile.TemporaryDirectory(prefix="purestep-tests-")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ["RESEARCH_CACHE"] = CACHE.name
os.environ["TFDS_DATA_DIR"] = str(Path(CACHE.name) / "tfds")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny_runs  # noqa: E402

from research import cli  # noqa: E402
from research.core import params as P  # noqa: E402
from research.model import transformer  # noqa: E402
from research.model.config import ModelConfig  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile(
    "suite", deadline=None, max_examples=50, database=None
)  # a busy machine is no failure
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]
TINY = {"vocab_size": 13, "context": 12, "width": 16, "layers": 2, "heads": 4, "mlp_width": 24}


class Tiny:
    """The smallest models that have every part, with random values everywhere, biases and norm scales included."""

    @staticmethod
    def config(**changes) -> ModelConfig:
        return ModelConfig(**{**TINY, **changes})

    @staticmethod
    def params(config: ModelConfig, seed: int = 0, dtype=np.float32):
        """Values drawn by numpy (nothing to compile): matrices at 1 / sqrt(fan in), vectors around where they start."""
        draw = np.random.default_rng(seed)

        def one(p: P.Param):
            scale = p.matrix_shape[0] ** -0.5 if p.inputs else 0.3
            return jnp.asarray(
                (draw.normal(size=p.shape) * scale + (p.init.scale if p.init.kind == "constant" else 0)).astype(dtype)
            )

        return P.tree_map(one, transformer.specs(config))

    forward = staticmethod(jax.jit(transformer.forward, static_argnames="config"))

    @staticmethod
    def tokens(config: ModelConfig, rows: int = 2, length: int | None = None, seed: int = 0):
        shape = (rows, config.context if length is None else length)
        return jnp.asarray(np.random.default_rng(seed).integers(0, config.V, shape), jnp.int32)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def run_python():
    """`run_python(code, devices=1) -> stdout`: a fresh interpreter in the project's root; its failure is the test's."""

    def run(code: str, *arguments: str, devices: int = 1) -> str:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


MAPPED = 30_000  # Linux lets a process have 65,530 mappings, and every compiled program takes some; XLA aborts beyond


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Lets go of what was compiled before it is too much."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPED:
        jax.clear_caches()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    return tiny_runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def call_verb(capsys):
    """`call_verb(*words) -> (code, out, err)` of `research WORDS`, in this process."""

    def run(*words):
        capsys.readouterr()
        try:
            code = cli.main([*map(str, words)])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run
