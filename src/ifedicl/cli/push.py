"""``ifedicl push``."""

from __future__ import annotations

from typing import Annotated

import typer

from ifedicl.cli.options import AdapterFolder


def push(
    adapter: AdapterFolder,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub; made if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Push without a question, after showing the same.")] = False,
) -> None:
    """Push an adapter to the hub: its three files, with a card, and the licence texts beside the base model.

    Everything that goes is shown first, then you are asked. Log in once with `hf auth login`. HF_ENDPOINT names another hub,
    HF_HUB_OFFLINE=1 forbids it. `ifedicl classify hub:OWNER/NAME` uses the adapter.
    """
    from ifedicl.adapter import Adapter

    loaded = Adapter.load(adapter)

    def agreed(description: str) -> bool:
        print(description, flush=True)
        return yes or typer.confirm("Push this?", default=False)

    address = loaded.push_to_hub(name, confirm=agreed, public=public)
    print("nothing was pushed" if address is None else f"pushed to {address}")
