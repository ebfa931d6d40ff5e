#!/bin/sh
# A worker of a Ray cluster: it trains, and needs no database.
#
# RAY_HEAD_ADDRESS  the head (head:6379)
# NODE_IP           address of this node; default: Ray finds it
# WORKER_CPUS       trainings at a time, if each takes one CPU; default: all cores
# RAY_TEMP_DIR      Ray's logs and sockets, a short path; default: /tmp/ray
# OBJECT_STORE      bytes of shared memory (100 MB: results are a few numbers)
# and those of environment.sh
set -eu
# shellcheck source=docker/environment.sh
. "$(dirname "$0")/environment.sh"

address=${RAY_HEAD_ADDRESS:-head:6379}
# Ray's own look-up of a name fails where a name server is slow or absent, even if /etc/hosts has the name.
ip=$(getent ahostsv4 "${address%:*}" | head -n 1 | cut -d ' ' -f 1)

use_ray_token
exec ray start --block \
    --address="${ip:-${address%:*}}:${address##*:}" \
    ${NODE_IP:+--node-ip-address="$NODE_IP"} \
    ${WORKER_CPUS:+--num-cpus="$WORKER_CPUS"} \
    --object-store-memory="${OBJECT_STORE:-100000000}" \
    ${RAY_TEMP_DIR:+--temp-dir="$RAY_TEMP_DIR"}
