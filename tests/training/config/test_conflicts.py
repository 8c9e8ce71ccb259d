"""Options that contradict each other, those that go together, and names that do not exist."""

from pathlib import Path

import pytest

from dh2l_jax import Hierarchy
from dh2l_jax.experiments.plan import tables
from dh2l_jax.experiments.plan.settings import Options, config_of
from dh2l_jax.training.config import Config, load, override, recipes
from dh2l_jax.training.config.conflicts import (
    TREE_TERMS,
    refuse_conflicts,
    refuse_conflicts_with_tree,
)

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.py"))


def changed(config, assignments):
    for assignment in assignments.split():
        config = override(config, assignment.replace("~", " "))
    return config


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ("data.tree=cub20", "unknown data.tree 'cub20': did you mean 'cub200'?"),
        ("data.tree=flatt", "unknown data.tree 'flatt': did you mean 'flat'?"),
        ("model.name=ResNet50", "unknown model 'ResNet50': did you mean 'resnet50'?"),
        ("model.name=resnet9", "unknown model 'resnet9': did you mean 'resnet"),
        ("model.name=resnet19", "unknown model 'resnet19'"),
        ("reg.conv_metric=d_amcos", "unknown regulariser 'd_amcos': did you mean 'd_am_cos'?"),
        ("reg.conv_metric=d_h_bim", "unknown regulariser 'd_h_bim': did you mean 'd_h_bin'?"),
        ("reg.fc_metric=cosin", "unknown metric 'cosin': did you mean 'cosine'?"),
        ("reg.fc_metric=mma", "'mma' is no mean over pairs: call dh2l.regularizer('mma')(W) or"),
        ("reg.fc_metric=ocnn model.head=plain", "reg.fc_metric=ocnn looks at convolutions, and"),
        ("reg.conv_metric=decov", "decov needs features of a batch, found parameters alone"),
        ("reg.rules=a=>mhp(s=1)*1", "mhp(s=1) needs pole, found parameters alone: add dh2l.regu"),
        (
            "reg.conv_metric=so reg.half_space=true",
            "reg.half_space has no effect on reg.conv_metric=so, which is no mean over pairs",
        ),
        ("reg.fc_metric=angular3", "unknown metric 'angular3': did you mean 'angular"),
        ("data.tree=flat", "needs a tree of two levels or more, data.tree=flat has one: set model"),
        ("data.name=cifar10", "needs a tree of two levels or more, cifar10 has one: set model"),
        *(
            (f"model.head=plain reg.{term}=0.5", f"reg.{term}=0.5 has no effect on model.head=plai")
            for term in TREE_TERMS
        ),
        *(
            (f"model.head={head} reg.lambda_l=0.5", f"no effect on model.head={head}: set it to 0")
            for head in ("haframe", "etf", "sphere")
        ),
        (
            "model.head=haframe data.tree=flat",
            "model.head=haframe needs a tree of two levels or mo",
        ),
        ("model.head=plain data.tree=flat loss.name=hxe", "set loss.name=ce, or another data.tree"),
        (
            "model.head=plain data.name=cifar10 eval.decision=crm data.holdout=100",
            "eval.decision=crm needs a tree of two levels or more, cifar10 has one: set eval.d",
        ),
        ("model.head=etf loss.name=hxe", "brings its own loss: leave out loss.name, found hxe"),
        ("loss.name=hrn", "loss.name=hrn needs a logit of every node: set model.head=plain, found"),
        ("model.head=sphere loss.name=conditional", "set model.head=plain, found sphere"),
        (
            "data.sampling=sqrt loss.class_weights=balanced",
            "data.sampling=sqrt and loss.class_weights=balanced make up for rare classes twice: se",
        ),
        (
            "loss.class_weights=balanced loss.logit_adjustment=1",
            "loss.class_weights=balanced and loss.logit_adjustment=1 make up for rare classes twi",
        ),
        (
            "model.head=etf loss.class_weights=balanced",
            "loss.class_weights=balanced has no effect without a head whose loss is loss.name",
        ),
        (
            "model.head=plain loss.name=hrn loss.logit_adjustment=1",
            "loss.logit_adjustment=1.0 has no effect without a soft-max over the classes",
        ),
        ("eval.decision=crm", "temperature of its probabilities: set data.holdout"),
        (
            "loss.alpha=0.1",
            "loss.alpha=0.1 has no effect without loss.name=hxe: leave it out, or se",
        ),
        ("loss.name=hxe loss.beta=4", "loss.beta=4.0 has no effect without loss.name=soft_labels"),
        ("model.gamma=1", "model.gamma=1.0 has no effect without model.head=haframe or sphere"),
        (
            "model.head=haframe model.radius=1",
            "model.radius=1.0 has no effect without model.head=s",
        ),
        (
            "model.head=etf reg.fc_metric=cosine",
            "reg.fc_metric=cosine has no effect without model.",
        ),
        ("model.epsilon=0.5", "model.epsilon=0.5 has no effect on the centres 'free': set model.c"),
        ("model.pretrained=x.pth", "resnet20 takes no model.pretrained, found 'x.pth'; networks t"),
        ("model.name=resnet18 model.shortcut=B", "resnet18 takes no shortcut, got 'B'; networks t"),
        ("data.name=folder data.csv=a data.tree=cub200", "data.csv and data.tree are both a tree"),
        ("data.name=cub200 data.resize=64 data.crop=72", "data.crop must be at most data.resize,"),
        ("optim.decay=0.5", "optim.decay has no effect on optim.schedule=cosine, found 0.5: leave"),
        ("optim.milestones=0.3,0.6", "optim.milestones has no effect on optim.schedule=cosine"),
        ("optim.schedule=step optim.milestones=0.6,0.3", "optim.milestones must ascend, found (0."),
        ("optim.schedule=step optim.milestones=0.5,0.5", "optim.milestones must ascend, found (0."),
        ("optim.nesterov=yes optim.momentum=0", "optim.nesterov=true has no effect without mome"),
        (
            "optim.schedule=linear optim.decay=0.5",
            "optim.decay has no effect on optim.schedule=li",
        ),
        (
            "optim.name=adamw optim.momentum=0.8",
            "optim.momentum has no effect on optim.name=adamw",
        ),
        ("optim.name=muon optim.nesterov=true", "optim.nesterov has no effect on optim.name=muon"),
        ("model.head=etf optim.head_rate=2", "optim.head_rate=2 has no effect on model.head=etf"),
        ("optim.freeze=(", "optim.freeze: '(' is no regular expression: missing"),
        (
            "loss.name=hxe loss.label_smoothing=0.1",
            "loss.label_smoothing=0.1 has no effect without",
        ),
        ("data.mixup=0.2 batch_size=1", "data.mixup mixes the images of a batch: set batch_size=2"),
        ("optim.warmup_epochs=7", "optim.warmup_epochs must be at most the 6 epochs, found 7"),
        ("reg.rules=kernel$=>cosine", "reg.rules: expected PATTERN => REGULARIZER * WEIGHT [@ AXE"),
        ("reg.rules=kernel$=>cosine*x", "reg.rules: expected a weight ≥ 0, found 'x'"),
        ("reg.rules=a=>cosine*1;a=>d_am*1", "reg.rules: the pattern 'a' is there twice"),
        ("reg.rules=a=>cosin*1", "unknown regulariser 'cosin': did you mean 'cosine'?"),
        ("reg.rules=(=>cosine*1", "pattern '(' is no regular expression"),
        ("reg.rules=a=>cosine*1@i->o", "axes 'i->o': "),
        (
            "reg.rules=a=>cosine*1 reg.lambda_e=0.5",
            "reg.rules stand in place of E: leave out r",
        ),
        ("reg.rules=a=>cosine*1 reg.conv_metric=cosine", "reg.conv_metric has no effect on reg.ru"),
        (
            "reg.rules=a=>cosine*1 reg.fc_metric=cosine model.head=plain",
            "reg.fc_metric has no effect on reg.rules, which name their own, found cosine: leave",
        ),
        (
            "reg.schedule=linear reg.lambda_e=0 reg.lambda_l=0",
            "reg.schedule=linear has no effect where E and R have no weight: leave it out, or set",
        ),
        ("distributed.coordinator=a:1", "come together: set distributed.processes too, or distrib"),
        ("distributed.processes=2", "come together: set distributed.coordinator too, or distribu"),
        ("distributed.process=0", "come together: set distributed.coordinator too, or distribute"),
        ("distributed.auto=yes distributed.process=0", "leave out distributed.process"),
        ("distributed.auto=yes distributed.coordinator=a:1", "leave out distributed.coordinator"),
        (
            "distributed.coordinator=a:1 distributed.processes=2 distributed.process=2",
            "distributed.process must be below the 2 processes, found 2: they are counted from 0",
        ),
        (
            "distributed.coordinator=node distributed.processes=2 distributed.process=1",
            "distributed.coordinator must be ADDRESS:PORT, found 'node'",
        ),
    ],
)
def test_options_that_contradict(assignments, message):
    with pytest.raises(ValueError) as error:
        refuse_conflicts(changed(recipes.embedded(), assignments))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "assignments",
    [
        "",
        "model.head=plain",
        "model.head=plain data.tree=flat",
        "model.head=plain data.name=cifar10",
        "model.head=plain reg.lambda_l=0 reg.lambda_o=0",
        "reg.rules=a=>cosine*1 reg.fc_metric=cosine",
        "reg.rules=a=>cosine*1@i~o~->~o~i reg.lambda_e=0 reg.lambda_l=0 reg.schedule=cosine",
        "model.center=epsilon model.epsilon=0.5",
        "model.head=haframe loss.alpha=0.1 model.gamma=3",
        "model.head=etf data.tree=flat",
        "model.head=sphere loss.name=soft_labels loss.beta=4 model.radius=1",
        "loss.name=hxe loss.alpha=0 reg.parent_ce_weight=1",
        "model.head=plain loss.name=hrn reg.fc_metric=cosine",
        "eval.decision=crm data.holdout=20 loss.name=hxe",
        "reg.lambda_l=0",
        "reg.lambda_c1=1 reg.parent_ce_weight=1",
        "optim.schedule=cosine optim.milestones=0.5,0.85",
        "optim.milestones=",
        "optim.milestones=0,1",
        "optim.warmup_epochs=300",
        "data.resize=64 data.crop=64",
        "data.name=folder data.csv=a.csv data.tree=flat model.head=plain",
        "model.name=resnet18 model.pretrained=x.pth",
        "distributed.auto=yes",
        "distributed.coordinator=[::1]:80 distributed.processes=2 distributed.process=0",
    ],
)
def test_options_that_go_together(assignments):
    refuse_conflicts(changed(Config(), assignments))


@pytest.mark.parametrize(
    "option", ["model.head=sphere", "loss.name=hxe", "eval.decision=crm data.holdout=20"]
)
def test_own_images_without_a_tree(option):
    config = changed(Config(), f"data.name=folder {option}")
    refuse_conflicts(config)
    with pytest.raises(
        ValueError, match=r"needs a tree of two levels or more, folder has one: set"
    ):
        refuse_conflicts_with_tree(config, Hierarchy.flat(3))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_variant_of_every_config_is_taken(path):
    run = load(path)
    assert "python train.py" in path.read_text("utf-8")
    for variant in recipes.VARIANTS:
        if run.data.name == "cifar10" and variant in ("factored", "E+H"):
            continue  # it has no tree, and its config no λ of one
        if variant == "E+H":
            refuse_conflicts(run)
        refuse_conflicts(recipes.with_variant(run, variant))


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_run_of_every_table_is_taken(name):
    for setting in tables.table(name).settings:
        for weights in setting.candidates:
            chosen = Options(pretrained="weights", budget=0.1)
            refuse_conflicts(config_of(setting, weights, 0, chosen))
