"""``python -m ifedicl.cli``."""

from ifedicl.cli.commands import main

main()
