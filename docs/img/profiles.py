"""Draws energies of metrics on the square of the two similarities.

profiles.svg has six of them and lies beside this script; every_profile.svg is drawn for the site.

python docs/img/profiles.py [FOLDER]
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

import dh2l_jax as dh2l
from dh2l_jax.metrics.table import FAMILIES

matplotlib.use("svg")
import matplotlib.pyplot as plt

GREY = "#7d8590"  # legible on white and on black
NAMES = ("cosine", "d_h_bin", "d_am", "d_cos_hm", "d_am_cos", "n_euclidean2")
SIDE = np.linspace(-1, 1, 41)


STYLE = {
    "font.size": 11,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.fonttype": "none",
    "svg.hashsalt": "profiles",
}


def main(folder: Path) -> Path:
    """Draws the six into a folder; the picture's path."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), sharex=True, sharey=True)
        for panel, name in zip(axes.flat, NAMES, strict=True):
            energy, top, image = draw(panel, name)
            extend = "max" if energy.max() > top else "neither"
            bar = figure.colorbar(image, ax=panel, shrink=0.85, extend=extend)
            bar.ax.set_yticks(np.linspace(float(energy.min()), top, 3))
            bar.ax.yaxis.set_major_formatter("{x:.2g}")
        return finish(figure, axes, folder / "profiles.svg")


def every_profile(folder: Path) -> Path:
    """Draws every metric into a folder; the picture's path."""
    names = [*dh2l.METRICS, *FAMILIES]
    columns = 5
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.4 * columns, 2.5 * rows), sharex=True, sharey=True
        )
        for panel in axes.flat[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(axes.flat, names, strict=False):
            draw(panel, name)
        return finish(figure, axes, folder / "every_profile.svg")


def draw(panel, name: str) -> tuple:
    """One square: the energies, the height that is the brightest, and the image."""
    c, h = np.meshgrid(SIDE, SIDE)
    energy = np.array(dh2l.get_metric(name).energy(c, h))
    top = min(float(energy.max()), 2.0)  # those with a pole rise to 5e4
    levels = np.linspace(energy.min(), top, 9)
    kwargs = {"origin": "lower", "extent": (-1, 1, -1, 1), "cmap": "viridis", "vmax": top}
    image = panel.imshow(energy, interpolation="bilinear", **kwargs)
    panel.contour(c, h, energy, levels=levels[1:-1], colors="white", linewidths=0.6, linestyles="-")
    panel.set(title=name, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return energy, top, image


def finish(figure, axes, path: Path) -> Path:
    """Labels, and the file."""
    for panel in axes[-1]:
        panel.set_xlabel("c: cosine")
    for panel in axes[:, 0]:
        panel.set_ylabel("h: agreement of signs")
    figure.tight_layout()
    figure.savefig(path, dpi=50, transparent=True, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
