"""``python -m widthsearch``: the command of this Python, whatever ``PATH`` says."""

from widthsearch.cli import main

if __name__ == "__main__":  # not where multiprocessing imports it again
    main()
