"""Where a model's files are, and which model they hold, told without loading it; torch is imported late."""

from __future__ import annotations

from pathlib import Path

from ifedicl.backbone import gguf, hub
from ifedicl.backbone.checkpoint_folder import check_folder
from ifedicl.backbone.fingerprint import fingerprint_of
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.quantised_kinds import fingerprint_with
from ifedicl.errors import BackboneError
from ifedicl.settings import ModelSettings

# The files that are downloaded from a hub repository: weights without code, and the tokenizer's files.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*"]
_HUB_FILES += ["merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model"]
_HUB_FILES += ["adapter_config.json"]  # an adapter is refused by it
_HUB_FILES += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*", "README.md"]  # copied by an export
_PATH_BEGINS = (".", "/", "~", "\\")  # of what cannot be a hub id


def fingerprint(settings: ModelSettings) -> str:
    """The fingerprint of the model that ``settings`` name, without loading it; cached by path, size and time of its files.

    Raises:
        BackboneError: there is no such model.
        DownloadError: the hub cannot be reached.
    """
    return files_of(settings)[1]


def shape_of(settings: ModelSettings) -> ModelShape:
    """Fingerprint and size of the model that ``settings`` name, without loading it.

    Raises: as :func:`fingerprint`.
    """
    folder, fingerprint = files_of(settings)

    from ifedicl.backbone.from_files import read_config  # imports torch, and a wrong source is found first

    text = read_config(folder, settings.source).get_text_config()
    return ModelShape(fingerprint, int(text.num_hidden_layers), int(text.hidden_size))


def files_of(settings: ModelSettings, cache: Path | None = None) -> tuple[Path, str]:
    """The folder with the weights, converted or downloaded if necessary, and the model's fingerprint.

    Raises: as :func:`fingerprint`.
    """
    check_source(settings)
    original = Path(settings.source).expanduser()
    try:
        if _is_gguf(original):
            folder, stored = gguf.converted_folder(original, cache), gguf.fingerprint_of(original)
        else:
            folder = original
            if not original.is_dir():
                folder = _downloaded(settings)
                check_folder(folder, settings.source)
            stored = fingerprint_of(folder)
        return folder, fingerprint_with(stored, settings.quantisation)
    except OSError as error:
        raise _unreadable(settings, error) from error


def check_source(settings: ModelSettings) -> None:
    """Refuse a source on this machine that is not there or holds no model. A hub id passes: only a download can tell.

    Commands call it before anything heavy is imported.

    Raises:
        BackboneError: there is no such folder or file, or what it holds cannot be loaded.
    """
    original = Path(settings.source).expanduser()
    try:
        if _is_gguf(original):
            gguf.parts_of(original)
        elif original.is_file():
            raise BackboneError(
                f"model.source: received the file {settings.source}; allowed: a folder, a .gguf file or a hub id. Give its "
                "folder"
            )
        elif original.is_dir():
            check_folder(original, settings.source)
        elif settings.source.startswith(_PATH_BEGINS) or settings.source.count("/") > 1:
            raise BackboneError(f"model.source: {settings.source}: there is no such folder or file. Check the path")
    except OSError as error:
        raise _unreadable(settings, error) from error


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def _unreadable(settings: ModelSettings, error: OSError) -> BackboneError:
    return BackboneError(
        f"model.source: {settings.source}: {error.filename or 'a file'} cannot be read ({error.strerror or error}). "
        "Check that it is there, and its permissions"
    )


def _downloaded(settings: ModelSettings) -> Path:
    folder = hub.download(
        settings.source, settings.revision, _HUB_FILES, instead="give a folder or a .gguf file as model.source"
    )
    if folder is None:
        raise BackboneError(
            f"model.source {settings.source!r} (revision {settings.revision or 'default'}): no such folder, .gguf file or "
            "hub model. Check the spelling; a gated model needs `hf auth login` first"
        )
    return folder
