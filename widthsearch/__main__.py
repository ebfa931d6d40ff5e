"""``python -m widthsearch``: the command of this Python, whatever ``PATH`` says."""

from widthsearch.cli import main

main()
