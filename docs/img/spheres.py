"""Draws spheres.svg: a tree of classes, and its vectors before and after descent on R.

python docs/img/spheres.py [FOLDER]

The vectors have two dimensions, so a sphere is a circle. Nothing is placed by hand but the start of
the centres: the right panel is where 400 steps of gradient descent on `dh2l.hierarchical` end.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import dh2l_jax as dh2l

matplotlib.use("svg")
import matplotlib.pyplot as plt

GROUPS = {
    "animal": ("cat", "dog", "fox", "owl", "bee"),
    "plant": ("rose", "fern", "oak", "moss"),
    "vehicle": ("car", "bus", "bike"),
}
COLORS = dict(zip(GROUPS, ("#e07b39", "#3a9e6e", "#4a86d8"), strict=True))
GREY = "#7d8590"  # legible on white and on black
DISTANCE, RADIUS = 1.0, 0.5  # of the centres from the root, of the vectors from their centre
METRIC = dh2l.get_metric("n_euclidean2", clamp="straight_through")  # no pair is too close
SEED, STEPS, RATE = 0, 3000, 0.01

tree = dh2l.Hierarchy.from_paths({leaf: up for up, leaves in GROUPS.items() for leaf in leaves})
parents = tree.parents(2)


def start() -> dict[str, jax.Array]:
    """The parameters of a head before training: centres and siblings near each other."""
    turns = jnp.array([0.12, 0.22, 0.33])
    center = _on_circle(turns)
    offsets = 0.3 * jax.random.uniform(jax.random.key(SEED), (tree.num_classes,)) - 0.1
    return {
        "center_2": DISTANCE * center,
        "surface_2": DISTANCE * center[parents] + RADIUS * _on_circle(turns[parents] + offsets),
    }


def descend(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters after gradient descent on R; every vector keeps its length."""

    def step(params, _):
        gradient = jax.grad(lambda p: dh2l.hierarchical(p, tree, METRIC)[0])(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
        center = DISTANCE * dh2l.safe_normalize(params["center_2"])
        vectors = dh2l.project(params["surface_2"], params["center_2"], parents)
        surface = center[parents] + RADIUS * dh2l.safe_normalize(vectors)
        return {"center_2": center, "surface_2": surface}, None

    return jax.lax.scan(step, params, length=STEPS)[0]


def nearest(params: dict[str, jax.Array]) -> float:
    """The smallest angle between two siblings, in degrees."""
    vectors = dh2l.project(params["surface_2"], params["center_2"], parents)
    cosine = np.array(dh2l.pairwise(dh2l.cosine_similarity, vectors))
    siblings = (parents[:, None] == parents) & ~np.eye(len(parents), dtype=bool)
    return float(np.degrees(np.arccos(cosine[siblings].max())))


def _on_circle(turns: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(2 * jnp.pi * turns), jnp.sin(2 * jnp.pi * turns)], axis=-1)


def draw_tree(axes) -> None:
    """The root, the groups, and their classes, from left to right."""
    height, root = iter(range(tree.num_classes, 0, -1)), (0.0, (tree.num_classes + 1) / 2)
    for group, leaves in GROUPS.items():
        rows = [next(height) for _ in leaves]
        middle, color = (1.0, float(np.mean(rows))), COLORS[group]
        axes.plot(*zip(root, middle, strict=True), color=GREY, lw=1)
        for row, leaf in zip(rows, leaves, strict=True):
            axes.plot((1.0, 2.0), (middle[1], row), color=color, lw=1)
            axes.plot(2.0, row, "o", color=color, ms=5)
            axes.text(2.14, row, leaf, color=color, va="center")
        axes.plot(*middle, "o", color=color, ms=7)
        beside = middle[1] + (0.35 if middle[1] > root[1] else -0.75)  # the line from the root
        axes.text(0.92, beside, group, color=color, ha="right", weight="bold")
    axes.plot(*root, "s", color=GREY, ms=6)
    axes.set(xlim=(-0.2, 3.0), ylim=(0.3, tree.num_classes + 0.7))
    axes.set_title("a tree of classes\n")


def draw_spheres(axes, params: dict[str, jax.Array], title: str, *, names: bool) -> None:
    """Each group's sphere around its centre, with an arrow to each of its classes."""
    surface, center = np.array(params["surface_2"]), np.array(params["center_2"])
    axes.plot(0, 0, "s", color=GREY, ms=6)
    for number, color in enumerate(COLORS.values()):
        x, y = center[number]
        axes.plot((0, x), (0, y), color=GREY, lw=1, ls=(0, (3, 3)))
        axes.add_patch(plt.Circle((x, y), RADIUS, color=color, alpha=0.13, lw=0))
        axes.add_patch(plt.Circle((x, y), RADIUS, color=color, fill=False, lw=1))
        for index in np.flatnonzero(parents == number):
            tip = surface[index]
            arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", tip, (x, y), arrowprops=arrow)
            if names:
                out = np.array([x, y]) + 1.36 * (tip - (x, y))
                axes.text(*out, tree.names(2)[index], color=color, ha="center", va="center")
        axes.plot(x, y, "o", color=color, ms=7)
    axes.set(xlim=(-1.75, 1.75), ylim=(-1.2, 1.75), aspect="equal")
    axes.set_title(f"{title}\nnearest siblings: {nearest(params):.0f}° apart")


def main(folder: Path) -> Path:
    """Draws the picture into a folder; its path."""
    before = start()
    after = jax.jit(descend)(before)
    style = {
        "font.size": 11,
        "font.family": "DejaVu Sans",
        "axes.titlecolor": GREY,
        "axes.titlesize": 12,
        "svg.hashsalt": "spheres",
    }
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(1, 3, figsize=(12, 4), width_ratios=(0.8, 1, 1))
        draw_tree(axes[0])
        draw_spheres(axes[1], before, "before: siblings crowd together", names=False)
        draw_spheres(axes[2], after, "after: each group fills its own sphere", names=True)
        for panel in axes:
            panel.axis("off")
        figure.tight_layout(w_pad=0.5)
        path = folder / "spheres.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
