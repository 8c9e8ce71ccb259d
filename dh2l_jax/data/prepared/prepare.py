"""Prepares data sets through TFDS, once, and reads the prepared copies; TensorFlow is not needed.

dh2l data prepare NAME [--data-dir DIR] [--manual-dir DIR]

    prepare("cifar100")                        # downloads, checks, writes array_record files
    source = open_prepared("cifar100")         # encoded images, labels and the class tree

A prepared copy is TFDS's own: `tfds.data_source("cifar100")` reads it as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.facts import FACTS
from dh2l_jax.data.store.source import Source

__all__ = ["PREPARED", "is_prepared", "open_prepared", "our_name", "prepare"]

PREPARED = tuple(name for name, facts in FACTS.items() if facts.builder)

_ALIASES = {facts.tfds_name: name for name, facts in FACTS.items() if facts.tfds_name}
_PACKAGES = {"array_record": "array-record", "PIL": "pillow", "scipy": "scipy"}


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Prepares a data set, unless that was done before.

    Every image is decoded once on the way. After an error nothing half-written is left.

    Args:
      name: one of `PREPARED`, or TFDS's own name.
      data_dir: TFDS's folder of prepared data sets; None for its default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.
      manual_dir: folder of original files fetched by other means, which is only read; None for
        `downloads/manual` in `data_dir`.
      progress: show bars, if stderr is a terminal.

    Returns:
      The folder of the prepared copy.

    Raises:
      ValueError: an original file is not what it should be, or the name is unknown.
      OSError: a file cannot be fetched, read or written; the message says what to fetch and where
        to put it.
      ImportError: a package is missing.
    """
    from dh2l_jax.data.prepared import read

    name = our_name(name)
    builder = _builder(name, data_dir)
    folder = Path(builder.data_dir)
    if folder.exists():
        read.check_copy(builder)
        return folder
    _check_packages()
    root = Path(builder.data_dir_root)
    downloads = root / "downloads"
    manual = Path(manual_dir).expanduser() if manual_dir is not None else downloads / "manual"
    if manual_dir is not None and not manual.is_dir():
        raise ValueError(f"expected a folder as manual_dir, found {manual}")
    missing = _find_originals(name, builder, downloads, manual)
    made = [downloads / builder.name, downloads / "extracted", downloads, folder.parent, root]
    with _nothing_left_behind(downloads / builder.name, made):
        _download_and_prepare(builder, manual, missing, progress=progress and sys.stderr.isatty())
    return folder


def open_prepared(name: str, data_dir: str | Path | None = None) -> Source:
    """The prepared copy of a data set: its examples, not decoded, in TFDS's order, and its tree.

    Raises:
      ValueError: there is no such copy, with the command that prepares it; or it is damaged.
    """
    from dh2l_jax.data.prepared import read

    name = our_name(name)
    builder = _builder(name, data_dir)
    if not Path(builder.data_dir).exists():
        raise ValueError(
            f"{name} is not prepared in {builder.data_dir_root}: run dh2l data prepare {name} "
            f"--data-dir {builder.data_dir_root}"
        )
    return read.source(name, builder)


def is_prepared(name: str, data_dir: str | Path | None = None) -> bool:
    """Whether there is a prepared copy of a data set; the arguments are those of `prepare`."""
    return Path(_builder(our_name(name), data_dir).data_dir).exists()


def our_name(name: str) -> str:
    """The one of `PREPARED` that a name stands for, which may be TFDS's own."""
    name = _ALIASES.get(name, name)
    if name not in PREPARED:
        raise ValueError(unknown_name("data set", name, PREPARED))
    return name


def _builder(name: str, data_dir: str | Path | None) -> Any:
    from dh2l_jax.data.prepared.read import BUILDERS

    folder = None if data_dir is None else str(Path(data_dir).expanduser().absolute())
    try:
        return BUILDERS[name](data_dir=folder)
    except Exception as error:  # Of whatever TFDS finds in a damaged copy.
        where = Path(folder or "") / BUILDERS[name].name
        raise ValueError(
            f"{where}: the prepared copy is damaged, remove it and prepare again: {error}"
        ) from error


def _check_packages() -> None:
    lacking = [p for module, p in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if lacking:
        raise ImportError(
            f"preparing needs {', '.join(lacking)}, which is not installed: "
            "pip install 'dh2l_jax[data]'"
        )


def _find_originals(name: str, builder: Any, downloads: Path, manual: Path) -> dict:
    """The originals that have to be downloaded; an error if one is damaged or out of reach."""
    from dh2l_jax.data.prepared import cars
    from dh2l_jax.data.prepared.originals import files

    infos = builder.url_infos
    missing = files.missing(builder.name, infos, downloads, manual)
    if name == "cars196" and missing:
        builder.folder, lacking = cars.find_folder(manual)
        if lacking:
            raise FileNotFoundError(
                f"Stanford has not served Cars196 since 2023: put into {manual} either the folders "
                f"that torchvision's StanfordCars reads (missing in {builder.folder}: "
                f"{', '.join(lacking)}), or the original archives (missing: "
                f"{files.listing(missing)})"
            )
        return {}
    files.check_sizes(infos, manual)
    if missing and (reason := files.unreachable(missing)):
        raise ConnectionError(f"{reason}; {files.how_to_get(missing, manual)}")
    return missing


def _download_and_prepare(builder: Any, manual: Path, missing: dict, *, progress: bool) -> None:
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    from dh2l_jax.data.prepared.originals import files
    from dh2l_jax.data.prepared.shuffle import tfds_without_tensorflow

    try:
        # TFDS prints what it is about to do, with sizes that it does not know.
        with tfds_without_tensorflow(progress=progress), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=manual),
                file_format="array_record",
            )
    except NonMatchingChecksumError as error:
        found = " ".join(line.lstrip("* ") for line in str(error).splitlines()[:3])
        raise ValueError(f"{found}: fetch the file again") from error
    except (DownloadError, requests.RequestException) as error:
        raise ConnectionError(f"{_one_line(error)}; {files.how_to_get(missing, manual)}") from error


@contextlib.contextmanager
def _nothing_left_behind(downloads: Path, folders: list[Path]) -> Iterator[None]:
    """After an error, removes unfinished downloads, and of `folders` what is new and empty."""
    new = [folder for folder in folders if not folder.exists()]
    before = set(downloads.glob("*.tmp.*"))
    try:
        yield
    except BaseException:
        for folder in set(downloads.glob("*.tmp.*")) - before:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
