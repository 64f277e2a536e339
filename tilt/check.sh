#!/usr/bin/env bash
# Runs services/cmd/check in the cluster, as a Job made from a CronJob of checks.yaml, shows its log and ends as it ends:
#   tilt/check.sh check -n 10 place update find
set -euo pipefail
cronjob=$1
shift
kubectl() { command kubectl --context "${KUBE_CONTEXT:-kind-orders}" --namespace orders "$@"; }

job=$cronjob-$(date +%s)-$$
arguments=$(printf '"%s",' "$@")
kubectl create job "$job" --from "cronjob/$cronjob" --dry-run=client --output yaml |
  kubectl patch --local --filename - --output yaml --type json \
    --patch '[{"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ['"${arguments%,}"']}]' |
  kubectl create --filename -

phase() { kubectl get pods --selector "job-name=$job" --output 'jsonpath={.items[*].status.phase}'; }

while phase=$(phase) && [[ -z $phase || $phase == Pending ]]; do
  if ((SECONDS > 120)); then
    echo "The pod does not start:" >&2
    kubectl describe pods --selector "job-name=$job" >&2
    exit 1
  fi
  sleep 1
done
kubectl logs --follow "job/$job"
while phase=$(phase) && [[ $phase == Running ]]; do sleep 1; done
[[ $phase == Succeeded ]]
