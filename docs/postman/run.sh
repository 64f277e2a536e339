#!/usr/bin/env bash
# Sends the Postman collection to a running system:
#   docs/postman/run.sh [CART_URL [ORDER_URL [newman's options]]]
# It fails if any assertion fails. It needs Node.js, and installs newman as the lock file says.
set -euo pipefail
cd "$(dirname "$0")"

cart_url=${1:-http://localhost:5000}
order_url=${2:-http://localhost:7000}
shift $(($# < 2 ? $# : 2))

if [[ ! -x node_modules/.bin/newman ]]; then
    npm ci --no-progress
fi
exec node_modules/.bin/newman run orders.postman_collection.json \
    --environment local.postman_environment.json --env-var "cart_url=$cart_url" --env-var "order_url=$order_url" \
    --timeout-request 60000 "$@"
