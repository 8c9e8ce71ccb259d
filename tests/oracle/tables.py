"""Every number of a table by brute force from the files of its runs, and a trainer for tests."""

import csv
import hashlib
import json
import shutil
import statistics as plain

import numpy as np
import pytest
import scipy.stats
from support.idx_files import encode

from dh2l_jax.training.config import to_dict

FACTORED = "factored (λ_l = 0)"


class Fake:
    """Writes what training.loop writes, with scores drawn from the config.

    Args:
      stop_at: the call of `train` that ends early; 0 for none.
      error: what it raises.
    """

    jobs = 1

    def __init__(self, stop_at=0, error=None):
        self.stop_at, self.error = stop_at, error or Killed()
        self.trained, self.tested = [], []

    def check(self, config):
        """Nothing can be wrong."""

    def data(self, config):
        """The same for everyone."""
        return "d1"

    def seconds(self, config):
        """Of a run that is not made."""
        return 60.0

    def train(self, config, workdir):
        """Writes config.json and result.json."""
        shutil.rmtree(workdir, ignore_errors=True)  # of a run that ended early
        workdir.mkdir(parents=True)
        self.trained.append(workdir.name)
        text = json.dumps(to_dict(config))
        if len(self.trained) == self.stop_at:
            (workdir / "result.json").write_text('{"accuracy": [0.1')
            raise self.error
        (workdir / "config.json").write_text(text)
        result = {"split": "validation", **scores(text, "last"), "best": scores(text, "best")}
        result |= {"versions": {"jax": "1.2"}, "parameters": 7, "seconds": 1.5}
        (workdir / "result.json").write_text(json.dumps(result))
        return result

    def test(self, workdir):
        """Writes test.json."""
        self.tested.append(workdir.name)
        text = (workdir / "config.json").read_text()
        test = {state: scores(text, state + "-test") for state in ("last", "best_on_validation")}
        (workdir / "test.json").write_text(json.dumps(test))
        return test

    def memory(self, config):
        """Of a network of one weight."""
        return 4_000_000

    def forget(self):
        """Nothing is kept."""

    def stop(self):
        """Nothing is being trained."""


class Killed(BaseException):
    """Like a signal, nothing catches it."""


def scores(text, what):
    digest = hashlib.sha256((text + what).encode()).digest()
    return {"accuracy": [1.0, 0.5 + digest[0] / 1000], "images": 1000}


def key_of_labels(plan, row, column):
    """(network, variant, metric of the convolutions, of the head, l2) as the labels are read."""
    model = column.split()[0] if " E" in column or " factored" in column else plan.models[0]
    label = column.removeprefix(model).strip()
    if row in ("baseline", "baseline (no l2)") and label != "E+l2":
        return model, "baseline", "", "", False
    if row in ("baseline", "baseline_l2", "l2", "(l2, l2)"):
        return model, "l2", "", "", True
    conv, fc = row.strip("()").split(", ") if "," in row else (row, row)
    if label == FACTORED or fc == "l2":
        return model, "factored", conv, "", True
    return model, label.removesuffix("+l2"), conv, fc, (plan.name, label) != ("table1", "E")


def key_of_setting(setting):
    decay = setting.decay and setting.variant != "baseline"
    return setting.model, setting.variant, setting.conv_metric, setting.fc_metric, decay


def key_of_config(config):
    """What a stored config trains, told from its values alone."""
    model, reg, decay = config["model"], config["reg"], config["optim"]["weight_decay"] > 0
    if model["head"] == "hierarchical":
        variant = "E+H" if reg["lambda_l"] else "factored"
    else:
        variant = "E" if reg["lambda_e"] else "l2" if decay else "baseline"
    conv = reg["conv_metric"] if reg["lambda_e"] else ""
    fc = reg["fc_metric"] if variant in ("E", "E+H") else ""
    return config["data"]["name"], model["name"], variant, conv, fc, decay


def recompute(out, seeds):
    """By brute force from the files of the runs: key → (weights, {seed: test accuracy in %})."""
    found = {}
    for folder in (out / "runs").iterdir():
        config = json.loads((folder / "config.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        weights = config["reg"]["lambda_e"], config["reg"]["lambda_l"]
        file = folder / "test.json"
        test = json.loads(file.read_text()) if file.exists() else None
        table = found.setdefault(key_of_config(config)[1:], {})
        table[weights, config["seed"]] = result["accuracy"][-1], test
    chosen = {}
    for key, table in found.items():
        first = [(-table[w, s][0], w) for w, s in table if s == seeds[0]]
        weights = min(first)[1]
        # No test scores but of the chosen weights: nothing else has seen the test set.
        assert {w for w, s in table if table[w, s][1]} == {weights}
        tests = {seed: table[weights, seed][1] for seed in seeds}
        assert {s for w, s in table if w == weights} == set(seeds)
        chosen[key] = (
            weights,
            *(
                {seed: 100 * test[state]["accuracy"][-1] for seed, test in tests.items()}
                for state in ("last", "best_on_validation")
            ),
        )
    return chosen


def seconds_of(out):
    """Key of a setting → seconds of each of its runs."""
    found = {}
    for folder in (out / "runs").iterdir():
        config = json.loads((folder / "config.json").read_text())
        seconds = json.loads((folder / "result.json").read_text())["seconds"]
        found.setdefault(key_of_config(config)[1:], []).append(seconds)
    return found


def cells_of(text):
    """(row, column) → the cells of the table "Every cell", by header."""
    part = text.split("## Every cell")[1].split("##")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    header, _, *rows = lines
    return {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}


def shown(values):
    mean, deviation = plain.fmean(values), plain.stdev(values) if len(values) > 1 else None
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def check_reports(out, stem, plan, seeds):
    """Every number of the Markdown and the CSV against the runs' own files."""
    text = (out / f"{stem}.md").read_text("utf-8")
    chosen, cells = recompute(out, seeds), cells_of(text)
    p_of, papers = {}, {(c.row, c.column): c.paper for c in plan.cells}
    for key, (_, last, _) in chosen.items():
        l2 = chosen[key[0], "l2", "", "", True][1]
        differences = [last[seed] - l2[seed] for seed in seeds]
        if key[1] != "l2" and len(seeds) > 1 and plain.stdev(differences) > 1e-9:
            p_of[key] = scipy.stats.ttest_1samp(differences, 0).pvalue
    p_holm = dict(zip(p_of, holm(list(p_of.values())), strict=True))
    durations = seconds_of(out)
    memory = {f"{int(p.read_text()) / 1e6:.0f}" for p in out.glob("runs/*/step_bytes.txt")}
    for (row, column), cell in cells.items():
        key = key_of_labels(plan, row, column)
        weights, last, best = chosen[key]
        assert cell["n"] == str(len(seeds))
        assert cell["last"] == shown(list(last.values()))
        assert cell["best on validation"] == shown(list(best.values()))
        named = zip(("λ_e", "λ_l"), weights, strict=True)
        assert cell["chosen"] == (" ".join(f"{s} {w:g}" for s, w in named if w) or "–")
        assert cell["s"] == f"{plain.fmean(durations[key]):.0f}"
        assert cell["MB"] in memory
        assert cell["paper"] == (f"{papers[row, column]:.2f}" if papers[row, column] else "–")
        if key[1] != "l2":
            l2 = chosen[key[0], "l2", "", "", True][1]
            delta = plain.fmean(last[seed] - l2[seed] for seed in seeds)
            assert float(cell["Δ l2"]) == pytest.approx(delta, abs=0.00501)
        for header, values in (("p", p_of), ("p (Holm)", p_holm)):
            if key not in values:
                assert cell[header] == "–"
            elif values[key] >= 0.001:
                assert float(cell[header]) == pytest.approx(values[key], abs=0.000501)
            else:
                assert cell[header] == "< 0.001"
    with (out / f"{stem}.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["run"] for line in lines} == {path.name for path in (out / "runs").iterdir()}
    for line in lines:
        weights, last, _ = chosen[key_of_labels(plan, line["row"], line["column"])]
        mine = (float(line["lambda_e"]), float(line["lambda_l"])) == weights
        assert line["chosen"] == ("yes" if mine else "no")
        assert line["test_last"] == (str(round(last[int(line["seed"])], 10)) if mine else "")
    return text, cells


def holm(p_values):
    """The lowest levels at which the step-down procedure rejects, one hypothesis after another."""
    order = np.argsort(p_values, kind="stable").tolist()

    def rejected(level):
        steps = enumerate(order)
        kept = (k for k, i in steps if p_values[i] * (len(order) - k) > level)
        return order[: next(kept, len(order))]

    levels = sorted({1.0, *(p * k for p in p_values for k in range(1, len(order) + 1))})
    levels = [level for level in levels if level <= 1]
    return [min((x for x in levels if i in rejected(x)), default=1.0) for i in range(len(order))]


def write_idx(folder):
    """60,000 + 10,000 images whose class is a bright column."""
    folder.mkdir()
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        images[np.arange(count), :, 2 * labels] = 200
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{part}-{name}-ubyte").write_bytes(encode(array))
