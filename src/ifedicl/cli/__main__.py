"""``python -m ifedicl.cli``."""

from ifedicl.cli.app import main

main()
