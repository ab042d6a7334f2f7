"""Finding the files of a published data set: folders first, then a checked download."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eqtp.files import write_atomically

_LOG = logging.getLogger(__name__)
_TIMEOUT = 5.0  # seconds until a server that does not answer counts as absent
_MAX_BYTES = 200_000_000  # no file of a known data set comes near


@dataclass(frozen=True)
class Repository:
    """A folder of a public repository and the content its files must have.

    Attributes:
        name: of the folder under `EQTP_DATA` and in the cache.
        url: of the folder, ending in a slash.
        blobs: file name -> git blob id, the SHA-1 of "blob <length>", a zero byte and the content.
    """

    name: str
    url: str
    blobs: Mapping[str, str]


class Lookup:
    """Looks for files in a given folder, under `EQTP_DATA`, in the cache, and on the network.

    Args:
        repository: what is looked for.
        folder: looked at first.
        download: allows the network. After one failure it is not tried again.
    """

    def __init__(
        self, repository: Repository, folder: Path | None = None, download: bool = True
    ) -> None:
        self._repository = repository
        self._download_allowed = download
        self._cache = cache_directory() / repository.name
        self._folders = [] if folder is None else [folder]
        if os.environ.get("EQTP_DATA"):
            self._folders.append(Path(os.environ["EQTP_DATA"]) / repository.name)

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, or None where nothing serves."""
        for folder in self._folders:
            if (folder / name).is_file():
                _LOG.info("%s: found in %s", name, folder)
                return folder / name
            _LOG.info("%s: not in %s", name, folder)
        cached = self._cache / name
        if cached.is_file():
            if self.is_published(cached):
                _LOG.info("%s: found in the cache %s", name, self._cache)
                return cached
            _LOG.warning("%s: the cached copy %s is damaged and not used", name, cached)
        return self._fetch(name, cached)

    def is_published(self, path: Path) -> bool:
        """Tells whether a file has exactly the published content."""
        return blob_id(path.read_bytes()) == self._repository.blobs[path.name]

    def _fetch(self, name: str, target: Path) -> Path | None:
        """Downloads a file into the cache."""
        if not self._download_allowed:
            _LOG.info("%s: not downloaded, the network is not used", name)
            return None
        url = self._repository.url + name
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                content = response.read(_MAX_BYTES)
        except OSError as error:
            _LOG.info("%s: %s does not answer (%s)", name, url, error)
            self._download_allowed = False
            return None
        if blob_id(content) != self._repository.blobs[name]:
            _LOG.warning("%s: %s is not the published file (git blob id) and not used", name, url)
            return None
        _LOG.info("%s: downloaded from %s", name, url)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
        return target


def blob_id(content: bytes) -> str:
    """Git's name of a file's content.

    Example:
        >>> blob_id(b"")
        'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cache_directory() -> Path:
    """The user's cache folder of eqtp, by the platform's convention (not created)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "eqtp"
