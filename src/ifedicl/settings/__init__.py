"""Settings of a run: frozen, checked together, with all faults reported at once.

:class:`Method` travels to the clients and decides the numbers. :class:`Coordination` says how the coordinator drives the run.
:class:`RunSettings` holds both, and where the model and the data lie. A config file is TOML; ``preset`` names a shipped file
whose sections it starts from (``paper`` is the paper's variant).
"""

from ifedicl.settings.config import TOGETHER, DataSettings, ModelSettings, RunSettings, SplitSettings
from ifedicl.settings.contradictions import check_coordination, noise_contradictions
from ifedicl.settings.coordination import Coordination
from ifedicl.settings.earlier import method_of
from ifedicl.settings.method import Method
from ifedicl.settings.paths import anchored, anchored_model
from ifedicl.settings.presets import changed, load_preset, load_settings, presets
from ifedicl.settings.sections import (
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
from ifedicl.settings.validation import Section, read_toml, toml_of, validated

__all__ = [
    "TOGETHER",
    "CalibrationSettings",
    "Coordination",
    "DataSettings",
    "HoldoutSettings",
    "InjectionSettings",
    "Method",
    "ModelSettings",
    "NoiseSettings",
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
    "load_preset",
    "load_settings",
    "method_of",
    "noise_contradictions",
    "presets",
    "read_toml",
    "toml_of",
    "validated",
]
