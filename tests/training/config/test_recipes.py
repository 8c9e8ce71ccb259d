"""The paper's recipes and variants: exactly its §5's numbers, and what each variant minimises."""

import dataclasses
import json
import re
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dh2l_jax as dh2l
from dh2l_jax.training.config import Config, recipes
from dh2l_jax.training.config import sections as config
from dh2l_jax.training.step.objective import make_objective, make_regularizer

CONFIGS = Path(__file__).parents[3] / "configs"
TREE = dh2l.Hierarchy.two_level([0, 0, 1, 1, 1])

# Network and data set of each file, the metric of its convolutions and head, its variant.
FILES = {
    "cifar10_resnet20": ("cifar10", "resnet20", "d_cos_hm", "E"),
    "cifar100_resnet20": ("cifar100", "resnet20", "d_am_cos", "E+H"),
    "cifar100_resnet110": ("cifar100", "resnet110", "d_h_bin", "E+H"),
    "cub200_resnet18": ("cub200", "resnet18", "d_am_cos", "E+H"),
    "cub200_resnet50": ("cub200", "resnet50", "d_am_cos", "E+H"),
    "cars196_resnet18": ("cars196", "resnet18", "d_am_cos", "E+H"),
    "cars196_resnet50": ("cars196", "resnet50", "d_am_cos", "E+H"),
    "fashion_mnist": ("fashion_mnist", "resnet20", "d_am_cos", "E+H"),
    "fashion_mnist_mini": ("fashion_mnist_mini", "resnet20", "d_am_cos", "E+H"),
}
LIGHT = {"batch_size": 512, "epochs": 300, "pad": 4, "flip": True, "resize": 0, "crop": 0}
HEAVY = {"batch_size": 256, "epochs": 100, "pad": 0, "flip": True, "resize": 256, "crop": 224}
SGD = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "step",
    "milestones": (0.5, 0.85),
    "decay": 0.1,
    "warmup_epochs": 0.0,
}

# Variant → head, λ_f, and the terms that its objective holds.
VARIANTS = {
    "baseline": ("plain", 0.0, set()),
    "l2": ("plain", 5e-4, set()),
    "E": ("plain", 5e-4, {"R_E"}),
    "factored": ("hierarchical", 5e-4, {"R_E", "R_o"}),
    "E+H": ("hierarchical", 5e-4, {"R_E", "R_o", "R_p/2", "R_c/2"}),
}


def flat(run):
    """The options of a run without their sections; only `name` occurs in two of them."""
    values = config.to_dict(run)
    sections = [values.pop(section) for section in ("data", "model", "reg", "optim")]
    return values | {k: v for section in sections for k, v in section.items() if k != "name"}


def subset(values, keys):
    return {key: values[key] for key in keys}


@pytest.mark.parametrize(
    ("recipe", "expected"), [(recipes.light, LIGHT), (recipes.heavy, HEAVY)], ids=["light", "heavy"]
)
def test_the_recipes_are_the_papers(recipe, expected):
    run = recipe("cifar100", "resnet20")
    values = flat(run)
    assert subset(values, expected) == expected
    assert subset(values, SGD) == SGD
    assert subset(values, ("seed", "lambda_e", "lambda_l", "lambda_o")) == {
        "seed": 0,
        "lambda_e": 0.1,
        "lambda_l": 0.1,
        "lambda_o": 1e-4,
    }
    assert (run.data.name, run.model.name) == ("cifar100", "resnet20")
    assert subset(values, ("holdout", "fraction")) == {"holdout": 0, "fraction": 1.0}
    # The constraints and the inner levels' cross-entropy are options that the paper does not train.
    assert not any(values[f"lambda_c{k}"] for k in (1, 2, 3))
    assert values["parent_ce_weight"] == 0


def test_there_is_one_config_a_network_and_data_set():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_configs(name):
    run = config.load(CONFIGS / f"{name}.py")
    data, model, metric, variant = FILES[name]
    assert (run.data.name, run.model.name) == (data, model)
    assert (run.reg.conv_metric, run.reg.fc_metric) == (metric, metric)
    assert recipes.with_variant(run, variant) == run
    if name == "fashion_mnist_mini":
        assert run == recipes.embedded()
        return
    recipe = HEAVY if model in ("resnet18", "resnet50") else LIGHT
    assert subset(flat(run), recipe | SGD) == recipe | SGD


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("fashion")])
def test_figures_in_the_docstrings_are_the_papers(name):
    """Such as: The paper (Tables 2 and 3): 69.24 %, l2 68.03 %, neither 63.86 %."""
    data, model, metric, variant = FILES[name]
    text = (CONFIGS / f"{name}.py").read_text("utf-8")
    tables, *figures = re.search(
        r"The paper \(Tables? ([\d and]+)\): ([\d.]+) %, l2 ([\d.]+) %, neither ([\d.]+) %", text
    ).groups()
    file = resources.files("dh2l_jax.experiments").joinpath("plan", "paper_results.json")
    papers = json.loads(file.read_text("utf-8"))["tables"]
    known = {}
    for number in tables.split(" and "):
        values = papers[f"table{number}"]
        assert values["dataset"] == data
        for row, cells in values["rows"].items():
            for column, cell in zip(values["columns"], cells, strict=True):
                if cell is not None and column.split()[0] in (model, *variants_of(column)):
                    known[row, column.removeprefix(model).strip()] = cell
    if data == "cifar10":  # its columns tell whether there is l2
        expected = known[metric, "E+l2"], known["baseline", "E+l2"], known["baseline", "E"]
    else:
        plain = "baseline (no l2)" if data == "cifar100" else "baseline"
        expected = known[metric, variant], known["baseline_l2", "E"], known[plain, "E"]
    assert tuple(map(float, figures)) == expected


def variants_of(column):
    """The column itself where it names no network."""
    return [column] if " " not in column else []


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    run = recipes.with_variant(recipes.light("cifar100", "resnet8"), name)
    head, decay, terms = VARIANTS[name]
    assert (run.model.head, run.optim.weight_decay) == (head, decay)
    options = {"hierarchy": TREE} if head == "hierarchical" else {"num_classes": 5}
    model = dh2l.models.create("resnet8", **options)
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((4,), jnp.int32)

    def objective(images, labels):
        variables = model.init(jax.random.key(0), images, train=False)
        J = make_objective(model, TREE, run.reg)
        return J(variables["params"], variables["batch_stats"], images, labels)

    _, (_, found) = jax.eval_shape(objective, images, labels)
    assert set(found) - {"J", "L", "hits"} == terms


def test_variants_are_all_listed():
    assert tuple(VARIANTS) == recipes.VARIANTS


def test_a_variant_changes_nothing_else():
    """What is neither head, λ nor metric stays, so cells of a table differ by their variant."""
    run = config.override(recipes.heavy("cub200", "resnet18"), "optim.lr=0.3")
    run = dataclasses.replace(run, seed=7)
    for name in recipes.VARIANTS:
        variant = recipes.with_variant(run, name)
        changed = {k for k, v in flat(variant).items() if flat(run)[k] != v}
        assert changed <= {"head", "weight_decay", "lambda_e", "lambda_l", "lambda_o"}, name
        assert recipes.with_variant(variant, name) == variant


def test_terms_of_the_tree_end_with_the_tree():
    run = recipes.light("cifar100", "resnet20")
    tree = {"lambda_o": 1.0, "lambda_c1": 2.0, "lambda_c2": 3.0, "lambda_c3": 4.0}
    tree["parent_ce_weight"] = 5.0
    run = dataclasses.replace(run, reg=dataclasses.replace(run.reg, **tree))
    for name in recipes.VARIANTS:
        reg = dataclasses.asdict(recipes.with_variant(run, name).reg)
        kept = name in ("factored", "E+H")
        assert subset(reg, tree) == (tree if kept else dict.fromkeys(tree, 0.0)), name


@pytest.mark.parametrize("name", ["E", "factored", "E+H"])
def test_metrics_of_convolutions_and_head_are_chosen_apart(name):
    """The objective's terms against the metric library, called on the same parameters."""
    run = recipes.light("cifar100", "resnet8")
    run = recipes.with_variant(run, name, conv_metric="d_gm", fc_metric="angular2")
    random = np.random.default_rng(0)
    conv = random.normal(size=(3, 3, 2, 4)).astype(np.float32)
    surface = random.normal(size=(5, 6)).astype(np.float32)
    center = random.normal(size=(2, 6)).astype(np.float32)
    head = {"kernel": surface.T}
    module = None
    if run.model.head == "hierarchical":
        head = {"surface_2": surface, "center_2": center}
        module = dh2l.models.HierarchicalHead(TREE)
    params = {"conv": {"kernel": conv}, "head": head}
    parents = np.asarray(TREE.parents(2))

    @jax.jit
    def both(params):
        _, terms = make_regularizer(module, TREE, run.reg)(params, None)
        expected = {"R_E": dh2l.mean_energy(conv.reshape(-1, 4).T, "d_gm")}
        if name == "E":
            expected["R_E"] += dh2l.mean_energy(surface, "angular2")
        if name == "E+H":
            vectors = surface - center[parents]
            expected["R_p/2"] = dh2l.group_energy(vectors, parents, "angular2")
            expected["R_c/2"] = dh2l.center_energy(center, "angular2")
        return terms, expected

    terms, expected = both(params)
    for term, value in expected.items():
        np.testing.assert_allclose(terms[term], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("e+h", "seed=0", r"unknown variant 'e\+h': did you mean 'E\+H'"),
        ("", "seed=0", "unknown variant ''"),
        ("l2", "optim.weight_decay=0", "'l2' needs optim.weight_decay > 0, found 0"),
        ("E", "reg.lambda_e=0", "'E' needs reg.lambda_e > 0, found 0"),
        ("E+H", "reg.lambda_l=0", r"'E\+H' needs reg.lambda_l > 0, found 0"),
    ],
)
def test_a_variant_without_its_term_is_refused(name, option, message):
    run = config.override(recipes.light("cifar100", "resnet20"), option)
    with pytest.raises(ValueError, match=message) as error:
        recipes.with_variant(run, name)
    assert "\n" not in str(error.value)


def test_the_embedded_recipe_is_the_main_job():
    run = recipes.embedded()
    assert isinstance(run, Config)
    assert (run.epochs, run.batch_size, run.optim.schedule) == (6, 32, "cosine")
    assert run.data.holdout == 0
