"""What is drawn, for tests to look at."""

import matplotlib.figure
import pytest


@pytest.fixture
def figures(monkeypatch):
    """Every figure that has been saved."""
    found, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *args, **kwargs: (found.append(figure), save(figure, *args, **kwargs)),
    )
    return found
