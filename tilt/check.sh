#!/usr/bin/env bash
# Runs a program in the cluster as a Job, made from the CronJob of check.yaml or poison.yaml. Shows
# the log and ends with the result of the Job:
#   tilt/check.sh check -n 10 place update find
#   tilt/check.sh poison
set -euo pipefail
cronjob=$1
shift
kubectl() { command kubectl --context "${KUBE_CONTEXT:-kind-orders}" --namespace orders "$@"; }

job=$cronjob-$(date +%s)-$$
arguments=
if (($#)); then arguments=$(printf '"%s",' "$@"); fi
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
