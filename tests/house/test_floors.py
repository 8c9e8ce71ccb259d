"""The plan of the house in one table: who may import whom, and how large a room may become."""

import ast
import collections
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dh2l_jax"
FILES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") if path.suffix == ".py" else ""
    for path in sorted(PACKAGE.rglob("*"))
    if path.is_file() and path.suffix != ".pyc"
}

# From below. A wing imports lower storeys; two wings of one storey know nothing of each other.
STOREYS = (
    "checks files bars",
    "numerics hierarchy",
    "metrics spheres data",
    "regularizers models",
    "training",
    "experiments",
    "commands",
)
# Everything of the package that a module imports, where its storey would allow more. The longest
# name that fits counts; a folder stands for what is in it.
ONLY = {
    "hierarchy.tree": "checks hierarchy.class_lists hierarchy.readable",
    "hierarchy.readable": "checks",
    "hierarchy.class_lists": "checks",
    "hierarchy.published": "checks hierarchy.tree",
    "metrics": "checks numerics metrics",
    "metrics.similarity": "checks numerics",
    "metrics.bits": "checks numerics",
    "metrics.profile": "checks numerics metrics.similarity metrics.bits",
    "metrics.table": "checks numerics metrics.similarity metrics.profile",
    "metrics.blocks": "checks numerics metrics.similarity metrics.bits metrics.profile",
    "metrics.sums.dense": "checks metrics.blocks metrics.profile metrics.sums.closed",
    "metrics.sums.stacks": "checks numerics metrics.bits metrics.blocks metrics.profile "
    "metrics.similarity",
    "metrics.sums.sampled": "checks metrics.blocks metrics.profile metrics.sums.closed",
    "metrics.sums.tiled": "checks metrics.blocks metrics.profile metrics.sums.closed",
    "metrics.sums.closed": "checks metrics.blocks metrics.profile",
    "metrics.sums.ring": "checks metrics.blocks metrics.profile metrics.sums.closed "
    "metrics.sums.tiled",
    "metrics.sums.groups": "checks metrics.blocks metrics.profile metrics.sums.closed "
    "metrics.sums.dense metrics.sums.plan metrics.sums.stacks",
    "metrics.sums.plan": "checks metrics.blocks metrics.profile metrics.sums",
    "training.config.options": "checks",
    "training.config.sections": "checks training.config.optim training.config.options",
    "training.config.recipes": "checks training.config.sections training.config.optim "
    "training.config.options",
    "training.step": "checks numerics spheres hierarchy metrics regularizers models data.batches "
    "data.datasets training.config training.step",
    "training.run": "bars checks files training.config training.run training.host.processes "
    "training.step.state.TrainState",
    "training.run.facts": "files hierarchy data.store.fingerprint training.config training.run",
    "training.host.loggers": "checks files training.run.records",
    "training.host": "checks training.config.DistributedConfig training.host",
}
# Rooms with one door: who comes in, and by which of its modules, if not by the room's own names.
DOORS = {
    "models.weights": ("models training commands", "models.weights.torchvision"),
    "data.prepared.originals": ("data.prepared data.catalog data.mini", "data.prepared.originals"),
}
# Packages, and calls that end the process with a code, that have their places.
PLACES = {
    "flax": "models",
    "equinox": "",
    "optax": "regularizers.transform training.step training.experiment",
    "orbax": "training.run.checkpoint",
    "tensorflow_datasets": "data",
    "PIL": "data",
    "grain": "data",
    "safetensors": "models.weights",
    "jinja2": "experiments.page",
    "markupsafe": "experiments.page",
    "argparse": "commands data.mini.make",
    "tyro": "commands",
    "sys.exit": "commands data.mini.make data.prepared.originals.matlab",  # programs of their own
    "SystemExit": "commands",
    "rich": "bars training.run.console training.finished.calls commands data.folders.check "
    "data.store.cache",
    "configs": "",
    "torch": "",
    "tensorflow": "",
}
NUMPY_ALONE = (
    "hierarchy.tree",
    "hierarchy.class_lists",
    "hierarchy.readable",
    "hierarchy.published",
)
DISK = {"pathlib", "os", "io", "json", "shutil", "tempfile", "open"}  # nothing for training.step
HEAVY = {"flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "torch", "tyro"}
ENTRIES, LINES, CODE = 8, 400, 50  # of a folder, of a file, of a function without its docstring


parsed = functools.cache(ast.parse)


class House:
    """The files of a package, by their paths in it; a module's name has its folders' before it."""

    def __init__(self, files):
        self.files = files
        self.modules = {
            path.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", "."): path
            for path in files
            if path.endswith(".py")
        }
        self.trees = {name: parsed(files[path]) for name, path in self.modules.items()}

    def imports(self, name):
        """All that a module imports, also inside functions, as "module" or "module.name"."""
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def own(self, name):
        """What a module imports of the package, without the package's name."""
        for target in self.imports(name):
            if target.startswith("dh2l_jax."):
                yield target.removeprefix("dh2l_jax.")

    def module(self, target):
        """The module that holds an imported name."""
        return target if target in self.modules else target.rpartition(".")[0]


def within(name, places):
    """Whether a name is one of the places, or lies in one of them."""
    return any(f"{name}.".startswith(f"{place}.") for place in places.split())


def is_command(name):
    """Whether a module is run by `python -m`: it hands over to commands/."""
    return name.rpartition(".")[2] == "__main__"


def storey(name):
    wing = name.split(".")[0]
    found = [number for number, wings in enumerate(STOREYS) if wing in wings.split()]
    return found[0] if found else None


def storeys(house):
    """A wing imports only wings on lower storeys, and has a storey."""
    for name in house.modules:
        wing = name.split(".")[0]
        if not wing or is_command(name):
            continue
        if storey(name) is None:
            yield f"{name} stands on no storey"
            continue
        for target in house.own(name):
            other = target.split(".")[0]
            if other != wing and not (storey(target) or 0) < storey(name):
                yield f"{name} imports {house.module(target)}"


def rooms(house):
    """Inside the wings: ONLY, and nobody names a module that is not there."""
    for name in house.modules:
        rule = max((key for key in ONLY if within(name, key)), key=len, default=None)
        for target in house.own(name):
            if house.module(target) not in house.modules:
                yield f"{name} imports {target}, which does not exist"
            elif rule and not within(target, ONLY[rule]):
                yield f"{name} imports {target}"


def doors(house):
    """A closed room is entered by its door."""
    for name in house.modules:
        for target in house.own(name):
            for room, (guests, door) in DOORS.items():
                inside = not within(target, room) or within(name, room)
                comes_in = within(target, door) or house.module(target) == room
                if not inside and not (within(name, guests) and comes_in):
                    yield f"{name} imports {target}"


def places(house):
    """A package is used where its wing is; trees know NumPy alone, and a step no files."""
    for name, tree in house.trees.items():
        used = {target.split(".")[0] for target in house.imports(name)}
        if name in NUMPY_ALONE:
            foreign = used - set(sys.stdlib_module_names) - {"numpy", "dh2l_jax"}
            yield from (f"{name} uses {other}" for other in foreign)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call | ast.Raise):
                call = node.func if isinstance(node, ast.Call) else node.exc
                used.add(ast.unparse(call) if call else "")
        for package in used & PLACES.keys():
            ends = package == "sys.exit" and is_command(name)
            if not ends and not within(name, PLACES[package]):
                yield f"{name} uses {package}"
        if within(name, "training.step"):
            yield from (f"{name} uses {other}" for other in used & DISK)
    if "regularizers.transform" in map(house.module, house.own("regularizers")):
        yield "regularizers imports transform"


def circles(house):
    """No import goes round."""
    graph = {
        name: {house.module(target) for target in house.own(name)} - {name}
        for name in house.modules
    }
    done = set()
    while ready := {name for name in graph.keys() - done if graph[name] <= done}:
        done |= ready
    yield from (f"{name} lies on or above a circle" for name in graph.keys() - done)


def names(house):
    """No module has the name of something else that its package exports."""
    for name, path in house.modules.items():
        for target in house.own(name) if path.endswith("__init__.py") else ():
            beside = f"{name}.{target.rpartition('.')[2]}".strip(".")
            if beside in house.modules and target not in house.modules:
                yield f"{name} exports {target}"


def sizes(house):
    """Few entries in a folder, short files, short functions."""
    folders = collections.defaultdict(set)
    for path in house.files:
        *folder, entry = path.split("/")
        if entry.endswith(".py") and not entry.startswith("__"):
            folders["/".join(folder)].add(entry)
        for depth in range(1, len(folder)):
            folders["/".join(folder[:depth])].add(folder[depth])
    for folder, entries in folders.items():
        if len(entries) > ENTRIES and folder not in ("", "commands"):
            yield f"{folder} has {len(entries)} entries"
    for name, path in house.modules.items():
        text = house.files[path].splitlines()
        if len(text) > LINES:
            yield f"{name} has {len(text)} lines"
        for node in ast.walk(house.trees[name]):
            if isinstance(node, ast.FunctionDef) and (lines := code_lines(node, text)) > CODE:
                yield f"{name}.{node.name} has {lines} lines"


def code_lines(function, text):
    """Lines of a function that are neither blank, nor comments, nor its docstring."""
    numbers = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        numbers -= set(range(function.body[0].lineno, function.body[0].end_lineno + 1))
    return sum(text[number - 1].strip()[:1] not in ("", "#") for number in numbers)


RULES = (storeys, rooms, doors, places, circles, names, sizes)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule):
    assert not set(rule(House(FILES)))


WRONG = [
    (storeys, "attic.py", "", "attic stands on no storey"),
    (storeys, "models/a.py", "from dh2l_jax import training", "models.a imports training"),
    (storeys, "data/a.py", "import dh2l_jax.metrics", "data.a imports metrics"),
    (
        rooms,
        "hierarchy/tree.py",
        "def f(): import dh2l_jax.numerics",
        "hierarchy.tree imports numerics",
    ),
    (
        rooms,
        "metrics/sums/dense.py",
        "from dh2l_jax.metrics.table import METRICS",
        "metrics.sums.dense imports metrics.table.METRICS",
    ),
    (
        rooms,
        "training/run/a.py",
        "from dh2l_jax.training.step.state import init_state",
        "training.run.a imports training.step.state.init_state",
    ),
    (rooms, "models/a.py", "import dh2l_jax.a.b", "models.a imports a.b, which does not exist"),
    (
        doors,
        "training/a.py",
        "from dh2l_jax.models.weights.a import b",
        "training.a imports models.weights.a.b",
    ),
    (
        doors,
        "data/store/a.py",
        "import dh2l_jax.data.prepared.originals",
        "data.store.a imports data.prepared.originals",
    ),
    (places, "hierarchy/tree.py", "import chex", "hierarchy.tree uses chex"),
    (places, "regularizers/a.py", "import optax.losses", "regularizers.a uses optax"),
    (places, "training/a.py", "sys.exit(2)", "training.a uses sys.exit"),
    (places, "training/a.py", "raise SystemExit", "training.a uses SystemExit"),
    (places, "training/step/a.py", "open('x')", "training.step.a uses open"),
    (
        places,
        "regularizers/__init__.py",
        "from dh2l_jax.regularizers.transform import f",
        "regularizers imports transform",
    ),
    (circles, "numerics.py", "import dh2l_jax.spheres", "spheres lies on or above a circle"),
    (
        names,
        "metrics/__init__.py",
        "from dh2l_jax.numerics import table",
        "metrics exports numerics.table",
    ),
    (sizes, "models/a.py", "x = 1\n" * 401, "models.a has 401 lines"),
    (sizes, "models/a.py", "def f():\n" + " x = 1\n" * 50, "models.a.f has 51 lines"),
]


@pytest.mark.parametrize(("rule", "path", "source", "found"), WRONG)
def test_what_breaks_a_rule_is_found(rule, path, source, found):
    assert found in set(rule(House(FILES | {path: source})))


def test_a_full_folder_is_found():
    files = {f"models/a/{name}.py": "" for name in "abcdefghi"}
    assert set(sizes(House(files))) == {"models/a has 9 entries"}


def loaded_after(script):
    """Top names of the modules that a fresh interpreter has loaded after a script."""
    script += "\nimport sys\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_the_metric_library_stays_light():
    loaded = loaded_after("import dh2l_jax\nfor name in dh2l_jax.__all__: getattr(dh2l_jax, name)")
    assert {"jax", "dh2l_jax"} <= loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "script",
    [
        "import dh2l_jax; dir(dh2l_jax)",
        """
import contextlib, runpy, sys
sys.argv = ["dh2l", "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module("dh2l_jax", run_name="__main__")
""",
    ],
    ids=["import", "help"],
)
def test_help_needs_no_jax(script):
    assert not loaded_after(script) & (HEAVY - {"tyro"} | {"jax", "numpy"})
