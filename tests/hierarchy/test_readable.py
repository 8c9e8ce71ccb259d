"""Trees and scores as people read them: text and HTML that names can't break."""

import html.parser
import json
import pickle

import numpy as np
import pytest

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.scores import Scores, evaluate

TREE = Hierarchy.from_paths(
    {"gull": "animal/bird", "sun": "", "crow": "animal/bird", "cat": "animal"}
)
WIDE = Hierarchy.from_parents(([0, 0, 1], [i % 3 for i in range(100)]))


@pytest.mark.parametrize(
    ("tree", "rows", "expected"),
    [
        (
            TREE,
            6,
            ["├─ animal", "│  ├─ bird", "│  │  ├─ gull", "│  │  └─ crow", "│  └─ cat", "└─ sun"],
        ),
        (TREE, 5, ["├─ animal", "│  ├─ bird  (2 classes)", "│  └─ cat", "└─ sun"]),
        (TREE, 3, ["├─ animal  (3 classes)", "└─ sun"]),
        (TREE, 2, ["├─ animal  (3 classes)", "└─ sun"]),
        (Hierarchy.flat(9), 3, ["├─ 0", "├─ 1", "└─ … 7 more"]),
        (Hierarchy.flat(9), 0, ["└─ … 9 more"]),
        (
            WIDE,
            11,
            [
                *("├─ 0", "│  ├─ 0", "│  │  ├─ 0", "│  │  └─ … 33 more"),
                *("│  └─ 1", "│     ├─ 1", "│     └─ … 32 more"),
                *("└─ 1", "   └─ 2", "      ├─ 2", "      └─ … 32 more"),
            ],
        ),
    ],
)
def test_a_tree_has_so_many_rows(tree, rows, expected):
    head, *found = tree.as_text(rows).splitlines()
    assert head == repr(tree) == str(tree)
    assert found == expected


class Tags(html.parser.HTMLParser):
    """The tags of a page, how deep its lists go, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.depth, self.deepest, self.texts = set(), 0, 0, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.depth += tag == "ul"
        self.deepest = max(self.deepest, self.depth)

    def handle_endtag(self, tag):
        self.depth -= tag == "ul"

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = [
    "<script>hit()</script>",
    '"><img src=x onerror=hit()>',
    "a\x1b[2J\nb",
    "</ul></details>",
]


def test_names_are_shown_and_do_nothing():
    tree = Hierarchy.from_paths({name: (f"{name[:5]}?",) for name in HOSTILE})
    page = Tags(tree._repr_html_())
    assert page.tags == {"details", "summary", "ul", "li", "small"}
    assert (page.depth, page.deepest) == (0, 2)
    text = "".join(page.texts)
    assert all(name in text for name in HOSTILE if "\n" not in name)
    assert "\x1b" not in text + tree.as_text()
    assert len(tree.as_text().splitlines()) == 9


def test_a_large_tree_stays_readable():
    tree = Hierarchy.from_parents(([0] * 100, [i % 100 for i in range(20_000)]))
    page = tree._repr_html_()
    assert page.count("<li>") == 1 + 100 + 100 * 18
    assert page.count("<details open>") == 1  # the root: no level fits into 40 rows
    assert page.count("… 183 more") == 100


def test_scores_are_a_dict_that_shows_as_a_table():
    scores = evaluate(np.eye(4), np.array([0, 1, 2, 0]), TREE)
    assert isinstance(scores, Scores)
    assert json.loads(json.dumps(scores)) == scores == pickle.loads(pickle.dumps(scores))
    shown = repr(scores).splitlines()
    assert shown[0] == "4 images"
    assert [line.split() for line in shown[1:5]] == [
        ["level", "accuracy", "balanced"],
        ["1", "100.00", "%", "100.00", "%"],
        ["2", "75.00", "%", "83.33", "%"],
        ["3", "75.00", "%", "83.33", "%"],
    ]
    some = scores | {"level_images": [4, 3, 0], "accuracy": [1.0, 1.0, None]}
    known = Scores({"split": "<b>", "nodes": [2, 3, 4], **some})
    head, columns, *_, last = repr(known).splitlines()[:5]
    assert head == "<b>, 4 images"
    assert columns.split() == ["level", "nodes", "images", "accuracy", "balanced"]
    assert last.split() == ["3", "4", "0", "–", "83.33", "%"]
    page = Tags(known._repr_html_())
    assert "b" not in page.tags
    assert {"83.33 %", "<b>, 4 images"} <= set(page.texts)
    assert (repr(Scores(a=1)), Scores(a=1)._repr_html_()) == ("{'a': 1}", None)
