#!/usr/bin/env bash
# Installs or upgrades a release and waits until its pods run. It applies the CRDs first, because
# Helm never upgrades them. Prints the workloads, for Tilt: all that the namespace has, as it is the
# release's own.
set -euo pipefail
release=$1 namespace=$2 chart=$3 version=$4 values=$5

helm show crds "$chart" --version "$version" | kubectl apply --server-side --force-conflicts --filename - >&2
helm upgrade "$release" "$chart" --version "$version" --install --skip-crds \
  --namespace "$namespace" --values "$values" --wait --timeout 15m >&2
kubectl get deployments,statefulsets,daemonsets --namespace "$namespace" --output yaml
