"""The names that other people's code uses: each stays where it is, whatever moves behind it."""

import functools
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import dh2l_jax as dh2l

ROOT = Path(__file__).parents[2]
NAMES = {
    "dh2l_jax": """METRICS REGULARIZERS Hierarchy Level Metric angle binary_sign
        center_energy classes_present code_angle code_similarity containment
        cosine_similarity distance energy get_metric group_energy hierarchical hinge
        kernel_matrices logit_vectors margin mean_energy orthogonality pairwise project
        radii radius_order regularizer safe_normalize satisfaction sphere_levels
        straight_through ternary_sign weight_energy""",
    "dh2l_jax.models": "FrameHead HierarchicalHead Neck NodeHead SphereHead create dense_kernel",
    "dh2l_jax.models.weights": "export_safetensors export_stablehlo",
    "dh2l_jax.training.finished.calls": "Run evaluate train",
    "dh2l_jax.metrics": "METRICS Metric MetricLike Profile distance energy get_metric",
    "dh2l_jax.regularizers": """brock center_energy classes_present dso group_energy hierarchical mc
        ocnn orthogonality regularizer so spectral srip srip_step weight_energy""",
    "dh2l_jax.hierarchy": "Hierarchy decoding frames losses",
    "dh2l_jax.hierarchy.decoding": """answer conditional_log_probs crm crm_risk hrn_log_probs
        log_probs temperature threshold_for""",
    "dh2l_jax.hierarchy.frames": "cosine_loss dot_regression etf haframe haframe_gram",
    "dh2l_jax.hierarchy.losses": "conditional hrn hxe marginal soft_labels",
    "dh2l_jax.regularizers.transform": "add_gradient_of add_regularization riemannian",
    "dh2l_jax.spheres": """CENTERS EPSILON LOGITS Level absolute_centers logit_vectors project radii
        sphere_levels""",
    "dh2l_jax.evaluation": "Tally evaluate judge_answers score_answers summarize tally tree_order",
    "dh2l_jax.training.config": """Config DataConfig DistributedConfig EvalConfig LossConfig
        ModelConfig OptimConfig RegConfig from_dict load override same_run to_dict""",
    "dh2l_jax.training.finished.predictor": "Prediction Predictor Unreadable",
    "dh2l_jax.training.recipes": "VARIANTS embedded heavy light with_variant",
    "dh2l_jax.data.datasets": "Dataset",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in NAMES for name in NAMES[module].split()]
)
def test_a_name_stays_where_it_was(module, name):
    parent, _, last = module.rpartition(".")
    found = getattr(__import__(parent, fromlist=[last]), last) if parent else dh2l
    assert getattr(found, name) is not None


def test_the_curated_names_are_listed():
    assert set(NAMES["dh2l_jax"].split()) <= set(dh2l.__all__) <= set(dir(dh2l))


def test_names_that_load_when_they_are_asked_for_are_names_like_others():
    namespace = {}
    exec("from dh2l_jax import *", namespace)
    for name in dh2l.__all__:
        assert namespace[name] is getattr(dh2l, name)
    assert pickle.loads(pickle.dumps(dh2l.energy)) is dh2l.energy
    for name in ("Predictor", "Run", "add_regularization", "evaluate", "train"):
        assert getattr(dh2l, name).__name__ == name in dir(dh2l)
    assert {"data", "evaluation", "hierarchy", "metrics", "models", "training"} <= set(dir(dh2l))
    with pytest.raises(AttributeError, match="has no attribute 'enregy'"):
        dh2l.enregy  # noqa: B018 (looked up for its error)


@pytest.mark.parametrize("module", ["dh2l_jax", "dh2l_jax.data", "dh2l_jax.experiments"])
def test_a_module_stays_a_command(module):
    command = [sys.executable, "-m", module, "--help"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


PATHS = """block_1_1/conv_1/kernel block_1_1/conv_2/kernel block_1_1/norm_1/bias
    block_1_1/norm_1/scale block_1_1/norm_2/bias block_1_1/norm_2/scale block_2_1/conv_1/kernel
    block_2_1/conv_2/kernel block_2_1/norm_1/bias block_2_1/norm_1/scale block_2_1/norm_2/bias
    block_2_1/norm_2/scale block_3_1/conv_1/kernel block_3_1/conv_2/kernel
    block_3_1/norm_1/bias block_3_1/norm_1/scale block_3_1/norm_2/bias block_3_1/norm_2/scale
    head/center_2 head/surface_2 stem/conv/kernel stem/norm/bias stem/norm/scale"""


def test_checkpoints_of_before_fit_the_parameters():
    model = dh2l.models.create("resnet8", hierarchy=dh2l.Hierarchy.two_level([0, 0, 1]))
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    paths = jax.tree_util.tree_leaves_with_path(params)
    found = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    assert found == PATHS.split()
