"""``python -m ifedicl.lm_evaluation``: the command line of lm-evaluation-harness, with the model ``ifedicl``.

Version 0.4.13 of the harness knows no plugins. Later ones find the entry point ``lm_eval.models``: their own command serves.
"""

from __future__ import annotations

import sys

from ifedicl.errors import IfediclError

NAME, TARGET = "ifedicl", "ifedicl.lm_evaluation.adapter_lm:AdapterLM"
"""The model's name, and the class as the entry point states it."""


def main() -> None:
    """Run the harness's command line and exit."""
    import lm_eval.models  # noqa: F401 - it registers the harness's own models, which nobody does once there is one
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
    try:
        cli_evaluate()
    except IfediclError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
