#!/usr/bin/env bash
# Takes the only broker away and returns when it is back. Cart answers all the while; Order shows what it has.
set -euo pipefail
kubectl() { command kubectl --context "${KUBE_CONTEXT:-kind-orders}" --namespace orders "$@"; }

kubectl delete pod orders-dual-role-0
kubectl wait pod/orders-dual-role-0 --for create --timeout 2m # a pod that is not there yet cannot be waited for otherwise
kubectl wait pod/orders-dual-role-0 --for condition=Ready --timeout 5m
