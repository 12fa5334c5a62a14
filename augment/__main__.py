"""`python -m augment`."""

from augment.cli import main

main()
