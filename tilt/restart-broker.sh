#!/usr/bin/env bash
# Deletes the pod of the only broker and waits until it is back. Meanwhile Cart accepts orders, and
# Order responds with what it has.
set -euo pipefail
kubectl() { command kubectl --context "${KUBE_CONTEXT:-kind-orders}" --namespace orders "$@"; }

kubectl delete pod orders-dual-role-0
# kubectl cannot wait for a condition of a pod that does not exist yet.
kubectl wait pod/orders-dual-role-0 --for create --timeout 2m
kubectl wait pod/orders-dual-role-0 --for condition=Ready --timeout 5m
