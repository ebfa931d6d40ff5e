#!/bin/sh
# The team's page (widthsearch serve), for whoever has the token.  It only reads, and so does its database session.
#
# WIDTHSEARCH_STORAGE  the database, without its password
# BIND, PORT           where it listens (127.0.0.1, 8090)
# and those of environment.sh; the token is the secret serve_token
set -eu
# shellcheck source=docker/environment.sh
. "$(dirname "$0")/environment.sh"

use_database_password
secret serve_token
# Only reading, it could not make the tables of an empty database: make them first.
python3 -c 'import os, optuna; optuna.storages.RDBStorage(os.environ["WIDTHSEARCH_STORAGE"])'
export PGOPTIONS='-c default_transaction_read_only=on'
exec widthsearch serve --host "${BIND:-127.0.0.1}" --port "${PORT:-8090}" --token-file "$SECRETS_DIR/serve_token"
