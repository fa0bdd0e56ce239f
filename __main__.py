"""``python -m qconv``: the command line."""

from .convert.cli import main

main()
