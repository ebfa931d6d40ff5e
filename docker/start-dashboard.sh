#!/bin/sh
# optuna-dashboard.  It has no logins, and any page in the browser of someone who can reach it may send it
# commands: so all it gets is a database session that can only read.
#
# WIDTHSEARCH_STORAGE  the database, without its password
# BIND, PORT           where it listens (127.0.0.1, 8080)
# and those of environment.sh
set -eu
# shellcheck source=docker/environment.sh
. "$(dirname "$0")/environment.sh"

use_database_password
# Only reading, it could not make the tables of an empty database: make them first.
python3 -c 'import os, optuna; optuna.storages.RDBStorage(os.environ["WIDTHSEARCH_STORAGE"])'
export PGOPTIONS='-c default_transaction_read_only=on'
exec optuna-dashboard --host "${BIND:-127.0.0.1}" --port "${PORT:-8080}" "$WIDTHSEARCH_STORAGE"
