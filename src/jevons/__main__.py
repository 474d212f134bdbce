"""`python -m jevons`."""

from jevons.cli import main

main()
