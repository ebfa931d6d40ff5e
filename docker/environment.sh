# shellcheck shell=sh
# Sourced by the start scripts: the secrets they need, as private files, and what Ray must be told.
# No secret is put into a variable or an argument: both can be read by others (docker inspect, ps).
#
# SECRETS_DIR  where secrets come from: ray_token, and postgres_password on nodes that use the database
# PRIVATE_DIR  where the private copies go; Ray and libpq want files that nobody else can read
# DB_HOST, DB_PORT, DB_USER  the server, and the user, that the database password is for

SECRETS_DIR=${SECRETS_DIR:-/run/secrets}
PRIVATE_DIR=${PRIVATE_DIR:-$HOME/.widthsearch}

secret() { # NAME: stop unless it is there
    if [ ! -s "$SECRETS_DIR/$1" ]; then
        echo "error: no secret $SECRETS_DIR/$1 (docker/README.md says how to make it)" >&2
        exit 1
    elif [ ! -r "$SECRETS_DIR/$1" ]; then
        echo "error: user $(id -u) may not read $SECRETS_DIR/$1 (docker/README.md says which mode it needs)" >&2
        exit 1
    fi
}

private_folder() ( # a subshell, so that Ray keeps the usual umask
    umask 077
    mkdir -p "$PRIVATE_DIR"
    chmod 700 "$PRIVATE_DIR"
)

use_ray_token() {
    secret ray_token
    private_folder
    install -m 600 "$SECRETS_DIR/ray_token" "$PRIVATE_DIR/ray_token"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PRIVATE_DIR/ray_token"
    # Usage statistics off.  "ray start --head" reports even that they are off: send this nowhere.
    export RAY_USAGE_STATS_ENABLED=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9/
}

use_database_password() {
    secret postgres_password
    private_folder
    (
        umask 077
        rm -f "$PRIVATE_DIR/pgpass"
        # host:port:database:user:password, where \ and : in the password need a backslash
        printf '%s:%s:*:%s:' "${DB_HOST:-db}" "${DB_PORT:-*}" "${DB_USER:-widthsearch}" >"$PRIVATE_DIR/pgpass"
        sed 's/[\\:]/\\&/g' "$SECRETS_DIR/postgres_password" >>"$PRIVATE_DIR/pgpass"
    )
    export PGPASSFILE="$PRIVATE_DIR/pgpass"
}
