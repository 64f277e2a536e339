#!/usr/bin/env bash
# Applies a kustomization and waits until all objects of the given kinds are Ready. Prints what it
# applied, for Tilt.
set -euo pipefail
directory=$1 kinds=$2 timeout=$3

kubectl apply --kustomize "$directory" --output yaml
kubectl wait "$kinds" --all --namespace orders --for condition=Ready --timeout "$timeout" >&2 || {
  kubectl get "$kinds" --namespace orders \
    --output 'jsonpath={range .items[*]}{.kind} {.metadata.name}: {.status.conditions}{"\n"}{end}' >&2
  exit 1
}
