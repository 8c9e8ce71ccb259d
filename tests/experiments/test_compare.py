"""The command that compares methods: its sentences by brute force, one protocol, bad input."""

import csv
import itertools
import json
import re
import statistics as plain

import jax
import numpy as np
import pytest
import scipy.stats
from oracle.tables import Fake, cells_of, holm

from dh2l_jax.commands import compare as command
from dh2l_jax.experiments import job
from dh2l_jax.experiments.plan.methods import setting_of
from dh2l_jax.experiments.plan.settings import Options, config_of
from dh2l_jax.training import loop
from dh2l_jax.training.config import recipes

# A method, and how its runs are told from all others by their configs alone.
METHODS = {
    "l2": lambda c: (
        (c["loss"]["name"], c["reg"]["lambda_e"], c["optim"]["momentum"]) == ("ce", 0, 0.9)
    ),
    "hxe": lambda c: c["loss"]["name"] == "hxe",
    "mhe_s2(half_space=True)": lambda c: "half" in c["reg"]["conv_metric"],
    "E(d_cos_hm)": lambda c: (
        c["reg"]["lambda_e"]
        and c["reg"]["conv_metric"] == "d_cos_hm"
        and c["model"]["head"] == "plain"
    ),
    "E+H(d_am_cos)": lambda c: c["reg"]["lambda_l"],
    "slow: --set optim.momentum=0.5": lambda c: c["optim"]["momentum"] == 0.5,
}
SEARCH = ["--search", "optim.lr=0.01,0.1"]
CANDIDATES = 2 * (1 + 2 + 2 + 2 + 4 + 1)  # two rates, times the list of each


def run(out, *arguments, trainer=None):
    return command.main([*arguments, "--out", str(out)], trainer)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all else."""
    monkeypatch.setattr(job.TableJob, "_draw", lambda self: None)


class Scored(Fake):
    """Accuracies on the test set that a function of the config gives; digests of other data."""

    def __init__(self, accuracy, digest="d1"):
        super().__init__()
        self.accuracy, self.digest = accuracy, digest

    def data(self, config):
        return self.digest

    def train(self, config, workdir):
        result = super().train(config, workdir) | {"data": {"sha256": self.digest}}
        (workdir / "result.json").write_text(json.dumps(result))
        return result

    def test(self, workdir):
        config = json.loads((workdir / "config.json").read_text())
        scores = {"accuracy": [self.accuracy(config)], "images": 1000}
        (workdir / "test.json").write_text(json.dumps(dict.fromkeys(TESTED, scores)))
        return dict.fromkeys(TESTED, scores)


TESTED = ("last", "best_on_validation")


def chosen_by_hand(out, seeds):
    """Method → {seed: test accuracy in %}, from the files of the runs alone."""
    runs = []
    for folder in (out / "runs").iterdir():
        config, result = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("config", "result")
        )
        test = folder / "test.json"
        tested = json.loads(test.read_text()) if test.exists() else None
        runs.append((config, result["accuracy"][-1], tested))
    found = {}
    for method, is_it in METHODS.items():
        mine = [one for one in runs if is_it(one[0])]
        first = max((one for one in mine if one[0]["seed"] == 0), key=lambda one: one[1])
        assert sum(one[1] == first[1] for one in mine if one[0]["seed"] == 0) == 1
        same = [one for one in mine if one[0] | {"seed": 0} == first[0]]
        assert {id(one) for one in mine if one[2]} == {id(one) for one in same}
        accuracy = {c["seed"]: 100 * test["last"]["accuracy"][-1] for c, _, test in same}
        assert sorted(accuracy) == list(range(seeds))
        found[method.partition(":")[0]] = accuracy
    assert len(runs) == CANDIDATES + (seeds - 1) * len(METHODS)
    return found


def test_every_sentence_by_hand(tmp_path, capsys, figures):
    trainer, words = Fake(), ["--methods", *METHODS, "--seeds", "4", *SEARCH]
    assert run(tmp_path, *words, trainer=trainer) == 0
    told = capsys.readouterr().out.splitlines()
    total = CANDIDATES + 3 * len(METHODS)
    assert told[0] == f"{total} runs, 0 done, about {total} min"
    assert told[total].startswith(f"[{total}/{total}] ")
    assert told[total].endswith("0 min left")

    found = chosen_by_hand(tmp_path, 4)
    l2 = found.pop("l2")
    differences = {name: [of[s] - l2[s] for s in range(4)] for name, of in found.items()}
    tests = [scipy.stats.ttest_1samp(values, 0) for values in differences.values()]
    p_values = holm([float(test.pvalue) for test in tests])
    sentences = told[total + 1 : -1]
    assert len(sentences) == len(METHODS) - 1
    for sentence, (name, values), test, p in zip(
        sentences, differences.items(), tests, p_values, strict=True
    ):
        low, high = test.confidence_interval(0.95)
        assert sentence.startswith(f"{name} is not told apart from l2: " if p >= 0.05 else name)
        numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d+", sentence.removeprefix(name))]
        mean = plain.fmean(values) if p >= 0.05 else abs(plain.fmean(values))
        assert numbers[:2] == pytest.approx([mean, (high - low) / 2], abs=0.0501)
        assert numbers[2] == pytest.approx(p, abs=0.000501)
        bound = scipy.stats.t.isf(0.025 / len(tests), 3)
        visible = numbers[3] / plain.stdev(values) * 2
        assert scipy.stats.nct.sf(bound, 3, visible) == pytest.approx(0.8, abs=0.01)

    text = (tmp_path / "comparison.md").read_text("utf-8")
    assert text.index(sentences[0]) < text.index("## Every cell")
    assert "every method alike optim.lr from {0.01, 0.1}; hxe α from {0.1, 0.5}" in text
    row = cells_of(text)["hxe", "test"]
    assert row["above"] == "100.00"  # what the trainer of the tests says of the one inner level
    assert (row["network"], row["epochs"], row["n"]) == ("resnet20", "6", "4")
    record = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert record["sentences"] == sentences
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == [line["run"] for line in record["runs"]]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "is not told apart from l2: " in page.split("<table")[0]
    (figure,) = figures
    dots = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "."]
    rows = [l2, *found.values()]
    np.testing.assert_allclose(dots, [[of[seed] for of in rows] for seed in range(4)])

    again = Fake()
    assert run(tmp_path, *words, trainer=again) == 0
    assert (again.trained, again.tested) == ([], [])
    assert capsys.readouterr().out.splitlines()[0] == f"{total} runs, {total} done"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("gain", "seeds", "sentence"),
    [
        (
            0.1,
            5,
            r"hxe is 10\.0 ± 0\.\d points better than l2 \(p < 0\.001 after Holm, 5 seeds\); ",
        ),
        (
            -0.1,
            5,
            r"hxe is 10\.0 ± 0\.\d points worse than l2 \(p < 0\.001 after Holm, 5 seeds\); ",
        ),
        (0.1, 1, r"hxe − l2: \+10\.1 points \(1 seed: a test needs two seeds or more\)\.$"),
    ],
)
def test_what_is_shown_is_said(tmp_path, capsys, gain, seeds, sentence):
    noise = (0.001, -0.002, 0.0, 0.001, -0.001)

    def accuracy(config):
        return 0.5 + (gain + noise[config["seed"]]) * (config["loss"]["name"] == "hxe")

    arguments = ["--methods", "hxe", "l2", "--seeds", str(seeds)]
    assert run(tmp_path, *arguments, trainer=Scored(accuracy)) == 0
    *_, told, _ = capsys.readouterr().out.splitlines()
    assert re.match(sentence, told), told


def test_methods_of_a_seed_differ_in_their_method_alone():
    """Split, order, epochs, batch and network: everything that no method names is one config."""
    base, seen = recipes.embedded(), []
    for name in METHODS:
        setting = setting_of("mine", "resnet20", name)
        for weights, seed in itertools.product(setting.candidates, (0, 3)):
            config = config_of(setting, weights, seed, Options(base=base))
            assert (config.seed, config.epochs, config.batch_size) == (seed, 6, 32)
            assert config.model.name == "resnet20"
            seen.append(config.data)
    assert set(seen) == {base.data}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("name", "shown"), [("my birds", "my_birds"), ("cifar10", "folder_cifar10")]
)
def test_own_images_and_the_runs_of_others(tmp_path, capsys, name, shown):
    """A folder gives its name; runs on what it held before are not taken for runs on it."""
    folder, out = tmp_path / name, tmp_path / "out"
    folder.mkdir()
    arguments = [str(folder), "--methods", "l2", "factored", "--seeds", "1"]
    arguments += ["--set", "model.name=resnet8"]
    first = Scored(lambda config: 0.5)
    assert run(out, *arguments, trainer=first) == 0
    assert len(first.trained) == 3
    assert all(run_name.startswith(f"{shown}-resnet8-") for run_name in first.trained)
    config = json.loads((out / "runs" / first.trained[0] / "config.json").read_text())
    assert config["data"]["data_dir"] == str(folder)
    assert (config["data"]["name"], config["data"]["holdout"]) == ("folder", 0.1)
    other = Scored(lambda config: 0.5, digest="d2")
    capsys.readouterr()
    assert run(out, *arguments, trainer=other) == 2
    assert "was trained on other data than there are now" in capsys.readouterr().err
    assert other.trained == []


@pytest.mark.usefixtures("no_picture")
def test_finished_runs_and_not_a_trial_tell_the_time(tmp_path, capsys):
    arguments = ["--methods", "l2", "factored", "--seeds"]
    assert run(tmp_path, *arguments, "1", trainer=Fake()) == 0
    capsys.readouterr()
    trainer = Fake()
    trainer.seconds = None  # a trial would fail
    assert run(tmp_path, *arguments, "50", "--dry-run", trainer=trainer) == 0
    assert "101 runs, 3 done" in capsys.readouterr().out
    assert run(tmp_path, *arguments, "41", trainer=trainer) == 0
    assert capsys.readouterr().out.splitlines()[0] == "83 runs, 3 done, about 2 min"


def test_without_a_time_the_runs_begin(tmp_path, capsys, monkeypatch):
    def failing(config):
        raise MemoryError("too large")

    trainer = Fake()
    monkeypatch.setattr(trainer, "seconds", failing)
    monkeypatch.setattr(job.TableJob, "_draw", lambda self: None)
    assert run(tmp_path, "--methods", "l2", "crm", "--seeds", "1", trainer=trainer) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("2 runs, 0 done\n")
    assert captured.err == "no estimate of the time: too large\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "unknown data set 'nowhere'"),
        (["cifar1000"], "did you mean 'cifar100'?"),
        (["--methods", "l2"], "expected two different methods or more, found l2"),
        (["--methods", "l2", "l2"], "expected two different methods or more, found l2 l2"),
        (["--methods", "l2", "hxee"], "unknown method 'hxee': did you mean 'hxe'?"),
        (["--methods", "l2", "E(d_amcos)"], "did you mean 'd_am_cos'?"),
        (["--methods", "l2", "E+H(d_amcos)"], "did you mean 'd_am_cos'?"),
        (["--methods", "l2", "mhe_s2(half=True)"], "half"),
        (["--methods", "l2", "a b: --set epochs=1"], "expected a new name of letters"),
        (["--methods", "hxe", "l2: --set epochs=1"], "expected a new name of letters"),
        (["--methods", "l2", "a: --set optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["--methods", "l2", "a: epochs=1"], "a: expected --set KEY=VALUE or --search KEY=A,B"),
        (["--methods", "l2", "a:"], "a: expected --set KEY=VALUE or --search KEY=A,B"),
        (["--methods", "l2", "a: --set"], "expected key=value, found ''"),
        (["--methods", "l2", 'a: --set "'], "No closing quotation"),
        (["--seeds", "0"], "--seeds must be 1 or more, found 0"),
        (["--seeds", "five"], "argument --seeds: invalid int value: 'five'"),
        (["--search", "optim.lrr=1,2"], "did you mean 'optim.lr'?"),
        (["--search", "optim.lr=1"], "expected key=value,value with different values"),
        (["--search", "optim.lr=1,1"], "expected key=value,value with different values"),
        (["--search", "optim.lr=-1,1"], "optim.lr"),
        (["--search", "seed=1,2"], "seed is set by the methods or the seed, found in --search"),
        (["--set", "seed=1"], "seed is set by the comparison itself, found --set seed=1"),
        (["--search", "optim.lr=1,2", "--set", "optim.lr=1"], "optim.lr is set by the comparison"),
        (["--set", "data.holdout=1e9"], "data.holdout"),
        (["--config", "cifar"], "unknown config 'cifar'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code = run(tmp_path / "out", *arguments)
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_comparing_for_real(tmp_path, capsys, monkeypatch, kept):
    """Two methods, a rate and two seeds on a few embedded images; a seed has its weights."""
    build, built = loop.build, []
    monkeypatch.setattr(
        loop, "build", lambda *args, **kwargs: built.append(build(*args, **kwargs)) or built[-1]
    )
    arguments = ["--methods", "l2", "E+H(d_am_cos)", "--seeds", "2"]
    for text in ("model.name=resnet8", "data.fraction=0.05", "epochs=3", "eval_batch_size=20"):
        arguments += ["--set", text]
    assert run(tmp_path, *arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"7 runs, 0 done, about [\d.]+ (min|h)", told[0])
    assert told[-2].startswith("E+H(d_am_cos)")
    tested = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/test.json")]
    assert len(tested) == 4
    by_seed = {0: [], 1: []}
    for experiment in built:
        state = experiment.init()
        trunk = {name: leaf for name, leaf in state.params.items() if name != "head"}
        images = np.asarray(experiment.dataset.train_images)
        by_seed[experiment.config.seed].append((trunk, images))
    for same in by_seed.values():
        for other in same[1:]:
            jax.tree.map(np.testing.assert_array_equal, same[0], other)
    assert not np.array_equal(by_seed[0][0][1], by_seed[1][0][1])
