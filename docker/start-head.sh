#!/bin/sh
# The head of a Ray cluster.  It runs no trials (no CPUs); drivers and submitted jobs run here, and find
# the database password and everything else in its environment.
#
# NODE_IP        address of this node; default: Ray finds it
# HEAD_PORT      where workers connect (6379)
# BIND           address that the dashboard and job server listens on (127.0.0.1)
# JOBS_PORT      its port (8265); it needs ray[default], and without that there is none
# RAY_TEMP_DIR   Ray's logs and sockets, a short path; default: /tmp/ray
# OBJECT_STORE   bytes of shared memory (100 MB: results are a few numbers)
# and those of environment.sh
set -eu
# shellcheck source=docker/environment.sh
. "$(dirname "$0")/environment.sh"

use_ray_token
use_database_password
exec ray start --block --head \
    ${NODE_IP:+--node-ip-address="$NODE_IP"} \
    --port="${HEAD_PORT:-6379}" \
    --num-cpus=0 --num-gpus=0 \
    --object-store-memory="${OBJECT_STORE:-100000000}" \
    --dashboard-host="${BIND:-127.0.0.1}" --dashboard-port="${JOBS_PORT:-8265}" \
    ${RAY_TEMP_DIR:+--temp-dir="$RAY_TEMP_DIR"}
