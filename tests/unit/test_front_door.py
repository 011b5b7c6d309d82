"""The package's public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import ifedicl


def test_every_public_name_can_be_had() -> None:
    for name in ifedicl.__all__:
        assert getattr(ifedicl, name) is not None


def test_the_public_names_are_exactly_the_homes_and_the_version() -> None:
    assert set(ifedicl.__all__) == {*ifedicl._HOMES, "__version__"}
    assert dir(ifedicl) == sorted(ifedicl.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ifedicl, "Adaptor")


def test_importing_it_imports_neither_torch_nor_transformers_and_warns_of_nothing() -> None:
    code = "import sys, ifedicl; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_job_of_a_flare_server_imports_neither_torch_nor_scipy() -> None:
    """It loads no model, and starts for every run."""
    code = "import sys, ifedicl.flare.controller, ifedicl.adapter; "
    code += "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
