"""``python -m widthsearch.cli``."""

from widthsearch.cli import main

main()
