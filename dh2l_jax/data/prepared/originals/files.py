"""The original files of a data set: which there are, where they lie, whether they can be fetched.

TFDS downloads them, keeps a cache and compares checksums. Where there is no network, though, it
retries for minutes, and its messages do not say where a file fetched by other means belongs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

from tensorflow_datasets.core import utils
from tensorflow_datasets.core.download import checksums, resource

__all__ = [
    "UrlInfos",
    "check_sizes",
    "how_to_get",
    "listing",
    "missing",
    "unreachable",
    "url_infos",
]

UrlInfos = dict[str, checksums.UrlInfo]

# The imports take about as long: a user waits 10 s for an answer.
PROBE_SECONDS = 5.0


def url_infos(builder_name: str) -> UrlInfos:
    """Address → size, SHA-256 and name of each original file, from the tables inside of TFDS.

    >>> [info.filename for info in url_infos("cifar10").values()]
    ['cifar-10-binary.tar.gz']
    """
    return checksums.load_url_infos(utils.tfds_path() / "url_checksums" / f"{builder_name}.txt")


def missing(builder_name: str, infos: UrlInfos, downloads: Path, manual: Path) -> UrlInfos:
    """The files that are neither in TFDS's download cache nor in the manual folder."""

    def is_here(url: str, info: checksums.UrlInfo) -> bool:
        cached = resource.get_dl_fname(url, info.checksum)
        return (manual / str(info.filename)).exists() or any(
            resource.is_locally_cached(folder / cached)  # pyright: ignore[reportArgumentType]
            for folder in (downloads / builder_name, downloads)
        )

    return {url: info for url, info in infos.items() if not is_here(url, info)}


def check_sizes(infos: UrlInfos, manual: Path) -> None:
    """Refuses, at once, a file in the manual folder that has not the size of the original."""
    for url, info in infos.items():
        path = manual / str(info.filename)
        if not path.exists():
            continue
        if not path.is_file():
            raise ValueError(f"{path}: expected the file {url}, found no regular file")
        if path.stat().st_size != int(info.size):
            with path.open("rb") as file:
                page = ", a web page" if file.read(64).lstrip().startswith(b"<") else ""
            raise ValueError(
                f"{path}: expected the {int(info.size)} bytes of {url}, found "
                f"{path.stat().st_size} bytes{page}: fetch the file again"
            )


def listing(infos: UrlInfos) -> str:
    """Names, sizes and checksums of files, for a message."""
    return "; ".join(
        f"{info.filename}, {int(info.size)} bytes, sha256 {info.checksum}"
        for info in infos.values()
    )


def how_to_get(infos: UrlInfos, manual: Path) -> str:
    """What to fetch and where to put it, for a message."""
    return "; ".join(
        f"fetch {url} by other means ({listing({url: info})}) and put it at "
        f"{manual / str(info.filename)}"
        for url, info in infos.items()
    )


def unreachable(urls: Iterable[str]) -> str:
    """Why some address cannot be fetched, or an empty text; answers within `PROBE_SECONDS`."""
    reasons = dict.fromkeys(urls, f"no answer within {PROBE_SECONDS:g} s")

    def probe(url: str) -> None:
        reasons[url] = _refusal(url)

    # The threads are daemons: a look-up of a name can outlast any timeout of the request.
    threads = [threading.Thread(target=probe, args=(url,), daemon=True) for url in reasons]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return next((f"{url}: {reason}" for url, reason in reasons.items() if reason), "")


def _refusal(url: str) -> str:
    """Why the server does not send `url`, or an empty text."""
    # TFDS downloads with requests: the same proxies and certificates.
    import requests

    try:
        options = {"stream": True, "allow_redirects": False, "timeout": PROBE_SECONDS}
        with requests.get(url, **options) as response:
            return "" if response.status_code < 400 else f"HTTP status {response.status_code}"
    except requests.RequestException as error:
        return f"cannot be reached ({type(error).__name__})"
