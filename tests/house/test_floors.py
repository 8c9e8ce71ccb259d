"""The floors of the house: a module imports only lower floors and the siblings named."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dh2l_jax"

# The first key that fits is the floor; a folder stands for everything in it.
FLOORS = {
    "messages": 0,
    "hierarchy": 0,
    "numerics": 0,
    "similarity": 1,
    "metrics": 1,
    "profiles": 1,
    "code_products": 1,
    "pair_blocks": 1,
    "closed_sums": 1,
    "dense_sums": 1,
    "tiled_sums": 1,
    "ring_sums": 1,
    "pairwise": 1,
    "group_sums": 1,
    "spheres": 1,
    "kernels": 1,
    "regularizers": 2,
    "constraints": 2,
    "tallies": 2,
    "evaluation": 2,
    "models": 3,
    "data": 3,
    "training.config": 3,
    "training.options": 3,
    "training.loop": 5,
    "training": 4,
    "experiments": 6,
    "__init__": 6,
}
HEAVY = {"flax", "optax", "tensorflow_datasets", "configs", "orbax", "tensorflow", "torch"}


def modules():
    """Dotted name below the package → path."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def floor(name):
    for prefix, number in FLOORS.items():
        if name == prefix or name.startswith(prefix + "."):
            return number
    raise KeyError(f"{name} stands on no floor: add it to FLOORS and to the design")


def imports(path):
    """All modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path):
    """The package's modules that a file imports."""
    known = modules()
    for name in imports(path):
        inner = name.removeprefix("dh2l_jax").lstrip(".") if name.startswith("dh2l_jax") else ""
        if inner in known or f"{inner}.__init__" in known:
            yield inner if inner in known else f"{inner}.__init__"


def test_there_are_modules_on_every_floor():
    assert {floor(name) for name in modules()} >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", modules())
def test_imports_point_downwards(name):
    path = modules()[name]
    mine = floor(name)
    room = name.split(".")[0]
    for other in own(path):
        if mine == 0:
            assert other == "messages", f"{name} imports {other}"
        elif other.split(".")[0] == room or (mine == 1 and floor(other) == 1):
            assert floor(other) <= mine, f"{name} imports {other}"
        elif mine == 2:
            assert floor(other) <= 2, f"{name} imports {other}"
        else:
            assert floor(other) < mine, f"{name} imports {other}"
    for top in (module.split(".")[0] for module in imports(path)):
        if mine <= 2 or name == "__init__":
            assert top not in HEAVY, f"{name} imports {top}"
        if top == "flax":
            assert room == "models", f"{name} imports flax"
        if top == "tensorflow_datasets":
            assert room == "data", f"{name} imports tensorflow_datasets"
        assert top != "configs", f"{name} imports configs"


def test_the_tree_needs_numpy_alone():
    tops = {module.split(".")[0] for module in imports(PACKAGE / "hierarchy.py")}
    assert not tops & ({"jax", "chex"} | HEAVY)


def test_config_imports_nothing_of_ours_but_what_it_is_made_of():
    assert set(own(PACKAGE / "training" / "config.py")) <= {"messages", "training.options"}
    assert set(own(PACKAGE / "training" / "options.py")) <= {"messages"}


def test_no_import_goes_round_in_a_circle():
    graph = {name: set(own(path)) - {name} for name, path in modules().items()}
    done = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert not set(graph) - done


def test_importing_the_metric_library_stays_light():
    """In a fresh interpreter, so that nothing that this suite imported counts."""
    script = "import sys, dh2l_jax;print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert {"jax", "dh2l_jax"} <= loaded
    assert not loaded & HEAVY
