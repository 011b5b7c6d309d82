"""Settings of a run: frozen, checked together, with all faults reported at once.

:class:`Method` decides the numbers and is sent to the clients. :class:`Coordination` says how the coordinator drives the run.
:class:`RunSettings` has both, and the model and data. A config file is TOML; ``preset`` names a shipped file to start from
(``paper`` is the paper's variant).
"""

from ifedicl.settings.config import (
    TOGETHER,
    Coordination,
    DataSettings,
    ModelSettings,
    RunSettings,
    SplitSettings,
    check_coordination,
    check_task,
)
from ifedicl.settings.earlier import method_of
from ifedicl.settings.method import Method, noise_contradictions
from ifedicl.settings.presets import anchored, anchored_model, changed, load_preset, load_settings, presets
from ifedicl.settings.sections import (
    PRIVATE_DTYPE,
    CalibrationSettings,
    HoldoutSettings,
    InjectionSettings,
    NoiseSettings,
    PrivacySettings,
    ReadoutSettings,
    RobustSettings,
    RoundSettings,
    ServerSettings,
    SubspaceSettings,
    VectorSettings,
    WireDtype,
)
from ifedicl.settings.validation import PathText, Section, read_toml, toml_of, validated

__all__ = [
    "PRIVATE_DTYPE",
    "TOGETHER",
    "CalibrationSettings",
    "Coordination",
    "DataSettings",
    "HoldoutSettings",
    "InjectionSettings",
    "Method",
    "ModelSettings",
    "NoiseSettings",
    "PathText",
    "PrivacySettings",
    "ReadoutSettings",
    "RobustSettings",
    "RoundSettings",
    "RunSettings",
    "Section",
    "ServerSettings",
    "SplitSettings",
    "SubspaceSettings",
    "VectorSettings",
    "WireDtype",
    "anchored",
    "anchored_model",
    "changed",
    "check_coordination",
    "check_task",
    "load_preset",
    "load_settings",
    "method_of",
    "noise_contradictions",
    "presets",
    "read_toml",
    "toml_of",
    "validated",
]
