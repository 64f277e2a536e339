#!/usr/bin/env bash
# Installs or upgrades a release and returns when its pods run. Its CRDs go in first and by themselves: Helm never upgrades any.
# On stdout, for Tilt: the workloads. The namespace is the release's own.
set -euo pipefail
release=$1 namespace=$2 chart=$3 version=$4 values=$5

helm show crds "$chart" --version "$version" | kubectl apply --server-side --force-conflicts --filename - >&2
helm upgrade "$release" "$chart" --version "$version" --install --skip-crds \
  --namespace "$namespace" --values "$values" --wait --timeout 15m >&2
kubectl get deployments,statefulsets,daemonsets --namespace "$namespace" --output yaml
