#!/usr/bin/env bash
# Sends the collection to a running system: docs/postman/run.sh [CART_URL [ORDER_URL [newman's options]]]
# Ends with an error when any assertion fails. Needs Node.js; newman itself comes by the lock file.
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
