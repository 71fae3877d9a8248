"""The house rules that a parser can check: floors, letters of tensor names, sizes, docstrings, light imports."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(ROOT.glob("research/**/*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}

# docs/design.md, from the ground up; what shares a line stands side by side and does not see its neighbours
LINES = [
    {"core"}, {"data"},
    {"model"}, {"families"},
    {"hf"}, {"sample"}, {"tasks"},
    {"train"},
    {"sweep", "scale", "evaluate", "trust", "compress", "serve"}, {"bench"},
    {"cli"},
    {"__main__", "__init__"},
]  # fmt: skip
HEIGHT = {part: height for height, line in enumerate(LINES) for part in line}
HEAVY = {
    "tensorflow_datasets",
    "tensorflow",
    "matplotlib",
    "orbax",
    "tokenizers",
    "rich",
    "huggingface_hub",
    "torch",
    "transformers",
}
SUFFIX = re.compile(r"_([A-Z][A-Z0-9]*)$")


def imports(tree: ast.AST):
    """Every imported module of a file by its dotted name, those inside functions included; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    """The part of the house that a module of `research` belongs to."""
    return [*module.split("."), "__init__"][1]


def upward(module: str, tree: ast.AST) -> list[str]:
    """The imports of a module that point up or sideways. The package itself may be asked where it lies, not for what it offers."""
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "research"
    }
    wrong = []
    for name in imports(tree):
        if name == "research" and all(attribute.startswith("__") for attribute in asked):
            continue
        if name.split(".")[0] in ("experiments", "tests"):
            wrong.append(name)
        elif name.split(".")[0] == "research":
            here, there = part(module), part(name) if part(name) in HEIGHT else "__init__"
            if here != there and HEIGHT[there] >= HEIGHT[here]:
                wrong.append(name)
    return wrong


def test_every_module_stands_on_a_floor():
    assert {part(name) for name in SOURCES} <= set(HEIGHT)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_downwards(name):
    assert upward(name, TREES[name]) == []


@pytest.mark.parametrize(
    ("module", "code", "found"),
    [
        ("research.core.x", "from research.model import head", ["research.model.head"]),
        ("research.core.x", "def f():\n    import research.data.tokens", ["research.data.tokens"]),
        ("research.sample.x", "from research.tasks.lm import make_loss", ["research.tasks.lm.make_loss"]),
        ("research.sweep.x", "import research.scale", ["research.scale"]),
        ("research.train.x", "import research\nresearch.fit()", ["research"]),
        ("research.train.x", "import research\nprint(research.__file__)", []),
        ("research.train.x", "from research import load_run", ["research.load_run"]),
        ("research.cli", "from experiments import quickstart", ["experiments.quickstart"]),
        ("research.train.x", "from research.train import y\nfrom research.core import params\nimport jax", []),
        ("research.cli", "from research.train import fit", []),
    ],
)
def test_the_order_of_the_floors_is_enforced(module, code, found):
    assert upward(module, ast.parse(code)) == found


def letters(node: ast.AST) -> str | None:
    """The axes in a tensor's name, seen through `.astype(...)`; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
        return letters(node.func.value)
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    found = SUFFIX.search(name)
    return found[1] if found else None


def called(node: ast.AST) -> str:
    """The last name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def product(node: ast.Call) -> str | None:
    """The axes of an einsum's or dot's result by its operands' names, None where a name has no axes. Raises AssertionError when
    operands disagree with the formula or with each other."""
    if called(node) == "einsum":
        formula = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
        inputs, arrow, output = str(formula).replace(" ", "").partition("->")
        assert arrow, f"einsum without an explicit result: {ast.unparse(node)}"
        named = [letters(operand) for operand in node.args[1:]]
        assert named == inputs.split(","), f"{ast.unparse(node)}: operands are named {named}"
        return output
    x, w = (letters(operand) for operand in node.args[:2])
    contracted = next(
        (k.value.value for k in node.keywords if k.arg == "inputs" and isinstance(k.value, ast.Constant)), 1
    )
    if x is None or w is None:
        return None
    assert x[-contracted:] == w[:contracted], f"{ast.unparse(node)} contracts {x[-contracted:]} with {w[:contracted]}"
    return x[:-contracted] + w[contracted:]


KEEP_AXES = {"at_least_float32", "soft_cap", "constrain", "checkpoint_name", "astype", "dropout"}


def result(node: ast.AST) -> ast.Call | None:
    """The product that a value is, seen through functions that keep its axes."""
    while isinstance(node, ast.Call) and called(node) in KEEP_AXES:
        node = node.func.value if called(node) == "astype" and isinstance(node.func, ast.Attribute) else node.args[0]
    return node if isinstance(node, ast.Call) and called(node) in ("einsum", "dot") and len(node.args) > 1 else None


def disagreements(tree: ast.AST) -> list[str]:
    """Where a tensor's name contradicts the product that makes it, or the sizes read from its shape."""
    wrong = []
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Call) and called(node) in ("einsum", "dot") and len(node.args) > 1:
                product(node)
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, call = node.targets[0], result(node.value)
                axes = product(call) if call else None
                if axes is not None and letters(target) is not None:
                    assert letters(target) == axes, f"{ast.unparse(node)} has axes {axes}"
                if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
                    sizes = "".join(e.id for e in target.elts if isinstance(e, ast.Name))
                    of = shape_of(node.value)
                    assert of is None or not sizes.isupper() or sizes == of, f"{ast.unparse(node)} reads axes {of}"
        except AssertionError as error:
            wrong.append(f"line {node.lineno}: {error}")  # pyright: ignore[reportAttributeAccessIssue]
    return wrong


def shape_of(node: ast.AST) -> str | None:
    """The axes that `x_BTD.shape` or a constant slice of it holds."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        whole, bounds = shape_of(node.value), [node.slice.lower, node.slice.upper]
        if whole is None or any(b is not None and not isinstance(b, ast.Constant) for b in bounds):
            return None
        return whole[slice(*(b.value if isinstance(b, ast.Constant) else None for b in bounds))]
    return letters(node.value) if isinstance(node, ast.Attribute) and node.attr == "shape" else None


@pytest.mark.parametrize("name", SOURCES)
def test_tensor_names_agree_with_their_products(name):
    assert disagreements(TREES[name]) == []


def test_the_products_of_attention_are_among_those_checked():
    found = [node for node in ast.walk(TREES["research.model.attention"]) if called(node) == "einsum"]
    assert len(found) >= 2 and all(product(node) for node in found if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ('p_BTS = jnp.einsum("BTH,BSH->BTS", q_BTH, k_BSH)', False),
        ('p_BST = at_least_float32(jnp.einsum("BTH,BSH->BTS", q_BTH, k_BSH))', True),
        ('p_BTS = jnp.einsum("BTH,BSH->BTS", q_BTH, k_BTH)', True),
        ('p_BTS = jnp.einsum("BTH,BSH->BTS", q_BTH.astype(t), k)', True),
        ('f(jnp.einsum("BTH,BSH", q_BTH, k_BSH))', True),
        ("y_BTF = dot(x_BTD, w_DF, b_F)", False),
        ("y_BTD = dot(x_BTD, w_DF)", True),
        ("y_BTF = dot(x_BTD, w_FD)", True),
        ("y_BTD = dot(o_BTNH, p.w_NHD, inputs=2)", False),
        ("y_BTNH = dot(o_BTNH, w_NHD, inputs=2)", True),
        ("y_BTF = dot(x_BTD, kernel)", False),
        ("B, T, D = x_BTD.shape", False),
        ("B, D, T = x_BTD.shape", True),
        ("S, K = k_BSKH.shape[1:3]", False),
        ("K, H = k_BSKH.shape[1:3]", True),
    ],
)
def test_letters_that_disagree_are_found(code, wrong):
    assert bool(disagreements(ast.parse(code))) == wrong


@pytest.mark.parametrize("name", SOURCES)
def test_modules_and_their_public_parts_say_what_they_are(name):
    assert ast.get_docstring(TREES[name]), "a module names its subject"
    for node in TREES[name].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or len(node.body) == 1, (
                f"{node.name}, line {node.lineno}: what does it return?"
            )


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_functions_can_be_read_without_scrolling(name):
    assert len(SOURCES[name].read_text().splitlines()) < 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, (
                f"{node.name} from line {node.lineno} to {node.end_lineno}"
            )


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_pickles_and_heavy_packages_come_late(name):
    assert not {module.split(".")[0] for module in imports(TREES[name])} & {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
    }
    early = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not {module.split(".")[0] for node in early for module in imports(node)} & HEAVY


def test_import_research_is_light(run_python):
    code = """
import json, sys, time
import jax
before, start = set(sys.modules), time.process_time()
import research
print(json.dumps([time.process_time() - start, sorted({m.split(".")[0] for m in set(sys.modules) - before})]))
"""
    seconds, loaded = json.loads(run_python(code))
    assert seconds < 0.3
    assert not set(loaded) & (HEAVY | {"tyro"}), loaded


def test_what_research_offers_is_there_when_asked_for():
    import research

    assert callable(research.load_run) and callable(research.fit)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        research.nonsense  # noqa: B018
