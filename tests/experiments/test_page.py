"""The page of a run: true numbers, one file that asks for nothing, and no program but its own."""

import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from support.runs import make_run, record_of, state_of

from dh2l_jax.__main__ import main
from dh2l_jax.experiments.page import weights
from dh2l_jax.experiments.page.numbers import Answers
from dh2l_jax.experiments.page.render import rendered
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.training.config import Config, DataConfig, LossConfig, ModelConfig
from dh2l_jax.training.run.facts import RunFacts, read_facts

HOSTILE = [
    "</script><script>window.hit = 1</script>",
    '"><img src=x onerror="window.hit = 1">',
    "' onmouseover='window.hit = 1",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.hit=1",
    "<!-- <svg onload=window.hit=1>",
    "\u202egnp.exe",
    "line\nbreak\x00\x1b[2J",
    "</style></title></textarea><base href=//evil>",
    "$\\frac{1}{2}$ &amp; &lt;",
]
PROGRAM = Path(weights.__file__).with_name("page.js").read_text("utf-8")


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, its programs and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def page_of(workdir, capsys):
    assert main(["report", str(workdir)]) == 0
    assert capsys.readouterr().out == f"written: {workdir / 'report.html'}\n"
    return (workdir / "report.html").read_bytes()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose classes, nodes, images and folder have hostile names."""
    paths = {
        name: (f"{HOSTILE[-1 - number % 3]} {number % 4}",) for number, name in enumerate(HOSTILE)
    }
    workdir = tmp_path_factory.mktemp("hostile") / "<script>window.hit = 1<script>'\"&"
    make_run(workdir, Hierarchy.from_paths(paths), name=lambda n: f"{HOSTILE[n % 10]}\udcff{n}")
    assert main(["report", str(workdir)]) == 0
    return workdir


def read(workdir):
    return (workdir / "report.html").read_bytes()


def test_a_page_asks_for_nothing_and_runs_its_own_program_alone(hostile):
    text = read(hostile).decode("utf-8")
    page = Page(text)
    programs = [tag for tag, _ in page.elements if tag == "script"]
    assert len(programs) == 1
    assert f"<script>{PROGRAM}</script>" in text
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint(
        {"base", "embed", "form", "iframe", "object", "foreignobject", "textarea"}
    )
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,"
            if name == "style" and tag in ("td", "p"):
                assert re.fullmatch(r"--s:\d+", value)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy
    # Names are there as they are, but for letters that steer.
    shown = page.text.replace("\u2060", "")
    for name in HOSTILE:
        line = name.replace("\n", "\\n").replace("\x00", "\\x00").replace("\x1b", "\\x1b")
        assert line.replace("\u202e", "\\u202e") in shown
    assert "\\udcff" in shown


def test_every_picture_has_its_numbers_in_text(hostile):
    page = Page(read(hostile).decode())
    facts = read_facts(hostile)
    accuracy = facts.result["accuracy"]
    for share in accuracy:
        assert f"{100 * share:.2f} %" in page.text
    for image in (a for t, a in page.elements if t == "img"):
        assert image["alt"]
    drawings = [a for t, a in page.elements if t == "svg" and "matrix" not in a["class"]]
    assert drawings
    assert all(a["aria-hidden"] == "true" for a in drawings)
    assert sum(t == "details" for t, _ in page.elements) >= 3


@pytest.mark.parametrize("groups", [1, pytest.param(70, marks=pytest.mark.slow)])
def test_the_page_of_200_classes_is_small(tmp_path, capsys, groups):
    paths = {f"a class with a long name {i}": (f"group {i % groups}",) for i in range(200)}
    make_run(tmp_path / "run", Hierarchy.from_paths(paths), images=5_000, epochs=100)
    assert len(page_of(tmp_path / "run", capsys)) < 3e6


def test_pages_of_one_run_are_equal(hostile, tmp_path):
    out = tmp_path / "again.html"
    assert main(["report", str(hostile), "--out", str(out)]) == 0
    assert out.read_bytes() == read(hostile)


# The numbers, against loops.

UNEVEN = Hierarchy.from_paths(
    {
        "sun": "",
        "gull": "animals/birds",
        "owl": "animals/birds",
        "cat": "animals",
        "oak": "plants/trees/broad",
        "elm": "plants/trees/broad",
        "fir": "plants/trees",
    }
)


def oracle_paths(tree):
    """For each node the set of itself and the nodes above it but the root, and its depth."""
    parents, above = tree.node_parents(), []
    for node in range(tree.num_nodes):
        path = [node]
        while parents[path[-1]] != path[-1]:
            path.append(int(parents[path[-1]]))
        above.append(path[::-1])
    return above


@pytest.fixture(scope="module")
def answers():
    """Answers on labels of every node but the root, one row of NaN among them."""
    tree = UNEVEN
    generator = np.random.default_rng(1)
    labels = generator.integers(0, tree.num_nodes - 1, 200).astype(np.int32)
    logits = generator.normal(size=(200, tree.num_classes)).astype(np.float32) * 2
    logits[7] = np.nan
    labels[7] = 0

    return Answers(tree, logits, labels, temperature=2.0), logits, labels


def test_a_way_repeats_no_names():
    tree = Hierarchy.from_paths(
        {"land/toys": "land", "sea/deep/toys": "sea/deep", "fish": "sea/deep", "sky": ""}
    )
    answers = Answers(tree, np.eye(4, dtype=np.float32), np.arange(4))
    named = [[answers.own_names[node] for node in answers.way(leaf)] for leaf in range(4)]
    assert sorted(map("-".join, named)) == ["land-toys", "sea-deep-fish", "sea-deep-toys", "sky"]


def test_levels_count_what_reaches_them(answers):
    answers, logits, labels = answers
    above, C = oracle_paths(UNEVEN), UNEVEN.num_classes
    for row in answers.levels():
        hits = {}
        for logit, label in zip(logits, labels, strict=True):
            path = above[label]
            if label >= C and len(path) - 1 < row.level:
                continue
            truth = path[min(row.level, len(path) - 1)]
            said = None if np.isnan(logit).any() else above[int(np.argmax(logit))]
            said = said and said[min(row.level, len(said) - 1)]
            hits.setdefault(truth, []).append(said == truth)
        flat = [hit for node in hits.values() for hit in node]
        assert row.images == len(flat)
        assert row.accuracy == pytest.approx(np.mean(flat))
        assert row.balanced == pytest.approx(np.mean([np.mean(v) for v in hits.values()]))
        assert row.deep == sum(len(above[c]) - 1 >= row.level for c in range(C))


def test_answers_are_as_deep_as_they_are_sure(answers):
    answers, logits, labels = answers
    above, C = oracle_paths(UNEVEN), UNEVEN.num_classes
    parents = UNEVEN.node_parents()
    used = [i for i in range(len(labels)) if not np.isnan(logits[i]).any()]
    for row in answers.sure_against_right()[::10]:
        kinds, exact, depths = [], [], []
        for i in used:
            p = np.exp(logits[i].astype(np.float64) / 2)
            p /= p.sum()
            of = [sum(p[c] for c in range(C) if node in above[c]) for node in range(len(above))]
            node = len(above) - 1
            while node >= C:
                children = [n for n in range(len(above) - 1) if parents[n] == node]
                best = max(children, key=lambda n: of[n])
                if of[best] < row.threshold:
                    break
                node = best
            label = labels[i]
            right = node in above[label]
            kinds.append("right" if right else "undecided" if label in above[node] else "wrong")
            leaves = sum(node in above[c] for c in range(C))
            exact.append((math.log(C) - math.log(leaves)) / math.log(C))
            depths.append(len(above[node]) - 1)
        for kind in ("right", "undecided", "wrong"):
            assert getattr(row, kind) == pytest.approx(kinds.count(kind) / len(used)), row
        assert row.specificity == pytest.approx(np.mean(exact))
        assert [row.root, *row.depths] == [
            pytest.approx(depths.count(depth) / len(used)) for depth in range(5)
        ]


def test_confusion_classes_and_severity(answers):
    answers, logits, labels = answers
    above = oracle_paths(UNEVEN)
    said = [None if np.isnan(z).any() else int(np.argmax(z)) for z in logits]
    for branch in answers.branches():
        for row, child in enumerate(branch.children):
            for column, other in enumerate([*branch.children, None]):
                found = 0
                for label, one in zip(labels, said, strict=True):
                    if one is None or child not in above[label]:
                        continue
                    inside = branch.node in above[one]
                    found += other in above[one] if other is not None else not inside
                assert branch.counts[row, column] == found
        assert branch.way == above[branch.node]
    for row in answers.classes():
        mine = [one for label, one in zip(labels, said, strict=True) if label == row.node]
        assert row.images == len(mine)
        assert row.recall == pytest.approx(np.mean([one == row.node for one in mine]))
        hits = [
            label == row.node for label, one in zip(labels, said, strict=True) if one == row.node
        ]
        assert row.precision == pytest.approx(np.mean(hits))
    heights = UNEVEN.node_heights()
    rows = np.array([i for i in range(len(labels)) if said[i] is not None])
    for i, severity in zip(rows, answers.severity(rows), strict=True):
        common = [node for node in above[labels[i]] if node in above[said[i]]]
        assert severity == heights[common[-1]]
    assert sum(n for *_, n in answers.pairs()) <= len(labels)


def test_calibration_sums_to_its_error(answers):
    answers, logits, labels = answers
    total, count = 0.0, 0
    bins = [[] for _ in range(10)]
    for logit, label in zip(logits.astype(np.float64), labels, strict=True):
        if np.isnan(logit).any() or label >= UNEVEN.num_classes:
            continue
        p = np.exp(logit / 2) / np.exp(logit / 2).sum()
        bins[min(int(10 * p.max()), 9)].append((p.max(), p.argmax() == label))
        count += 1
    rows, error = answers.calibration()
    for (n, sure, right), mine in zip(rows, bins, strict=True):
        assert n == len(mine)
        if mine:
            a, b = np.mean(mine, axis=0)
            assert (sure, right) == (pytest.approx(a), pytest.approx(b))
            total += n * abs(a - b) / count
    assert error == pytest.approx(total)


def test_answers_by_risk_have_the_least():
    logits = np.log(np.array([[0.3, 0.3, 0.4]], np.float32))
    tree, label = Hierarchy.two_level([0, 0, 1]), np.zeros(1, np.int32)
    found = [Answers(tree, logits, label, decision=name) for name in ("argmax", "crm")]
    assert [answers.answers.tolist() for answers in found] == [[2], [0]]
    assert [answers.sure.item() for answers in found] == [pytest.approx(0.4), pytest.approx(0.3)]


HEADS = {
    "hierarchical": {"model": ModelConfig(name="resnet8", head="hierarchical")},
    "plain": {"model": ModelConfig(name="resnet8", head="plain")},
    "sphere": {"model": ModelConfig(name="resnet8", head="sphere")},
    "haframe": {"model": ModelConfig(name="resnet8", head="haframe")},
    "conditional": {
        "model": ModelConfig(name="resnet8"),
        "loss": LossConfig(name="conditional"),
    },
}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_class_vectors_and_layers(head):
    config = Config(data=DataConfig(name="folder", crop=8), **HEADS[head])
    data = record_of(UNEVEN, np.arange(7, dtype=np.int32))
    state = state_of(config, data, np.random.default_rng(0))
    arrays = weights.by_path(state.params)
    facts = RunFacts(Path(), config, data, {}, {})
    vectors = weights.class_vectors(facts, arrays)
    assert vectors.shape[1] == 7
    assert np.linalg.norm(vectors, axis=0).min() > 0
    found = {path.split("/")[0] for path in weights.layers(arrays)}
    assert ("head" in found) == (head != "haframe")


def test_a_group_on_its_sphere():
    tree = Hierarchy.two_level([0, 0, 0, 1, 1])
    kernel = np.zeros((4, 5))
    kernel[0, :3], kernel[1, :3] = (3.0, 0.0, 1.0), (0.0, 5.0, 1.0)
    (group,) = weights.spheres(kernel, tree)
    assert group.members == [0, 1, 2]
    assert group.kept == pytest.approx(1)
    assert group.mean == pytest.approx(60)
    assert group.nearest[2] == pytest.approx(45)
    np.testing.assert_allclose(np.linalg.norm(group.points, axis=1), 1)
    gram = group.points @ group.points.T
    np.testing.assert_allclose(gram[0], [1, 0, math.sqrt(0.5)], atol=1e-12)


# The command.


def test_a_page_after_the_test_shows_it(tmp_path, capsys):
    from dh2l_jax.training.run.records import write_bytes, write_sealed

    workdir = tmp_path / "run"
    outputs = make_run(workdir, UNEVEN)
    scores = json.loads((workdir / "result.json").read_text())
    better = scores | {"accuracy": [1.0, 0.9, 0.9, 0.875]}
    names = [f"test_{state}_outputs.npz" for state in ("last", "best_on_validation")]
    for name in names:
        write_bytes(workdir / name, outputs.pack())
    test = {"last": better, "best_on_validation": better, "data": scores["data"]}
    write_sealed(workdir / "test.json", test, names)
    page = Page(page_of(workdir, capsys).decode())
    assert "best on validation, test" in page.text
    assert "87.50 %" in page.text


def test_a_table_has_a_page(tmp_path, capsys):
    (tmp_path / "fashion.csv").write_text("row,accuracy\n<script>x</script>,91.5\n")
    (tmp_path / "fashion.md").write_text("# Fashion </pre><script>y</script>\n")
    page = Page(page_of(tmp_path, capsys).decode())
    assert [t for t, _ in page.elements].count("script") == 1
    assert "<script>x</script>" in page.text
    assert "91.5" in page.text


def test_what_is_no_run_is_refused(tmp_path, capsys):
    make_run(tmp_path / "run", Hierarchy.flat(3))
    damage = (tmp_path / "run/outputs.npz").read_bytes()
    (tmp_path / "run/outputs.npz").write_bytes(damage[:-1])
    for words, line in {
        (str(tmp_path),): "holds neither a run nor tables: expected config.json, or NAME.csv",
        (str(tmp_path / "run"),): "outputs.npz is damaged: its SHA-256 is not what the run wrote",
        (): "the following arguments are required: RUN",
    }.items():
        assert main(["report", *words]) == 2
        assert line in capsys.readouterr().err
    (tmp_path / "run/outputs.npz").write_bytes(damage)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "no/where.html")]) == 4
    assert "where.html cannot be written: No such file" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'dh2l_jax\[report\]'"):
        rendered("run.html", {})
