"""Rules of propagation, one file per kind of operation; the table of all of them is :mod:`..rules`."""
