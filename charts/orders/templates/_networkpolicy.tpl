{{/* Into a service: the API and the metrics, from those whom the values name. Out of it: DNS and Kafka. Nothing else. */}}
{{- define "orders.networkPolicy" -}}
{{- $policy := .root.Values.networkPolicy }}
{{- $cluster := .root.Values.kafka.strimzi.cluster }}
{{- $kafkaPorts := list }}
{{- range (include "orders.kafka" . | fromYaml).brokers | splitList "," }}
{{- $kafkaPorts = append $kafkaPorts (trim . | regexFind "[0-9]+$") }}
{{- end -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "orders.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - ports:
        - port: {{ .port }}
      from:
        - podSelector:
            matchLabels:
              {{- include "orders.selectorLabels" (dict "root" .root "component" "test") | nindent 14 }}
        {{- with $policy.http.from }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $policy.ops.from }}
    - ports:
        - port: {{ add $.port 1 }}
      from:
        {{- toYaml . | nindent 8 }}
    {{- end }}
  egress:
    {{- include "orders.networkPolicy.dns" . | nindent 4 }}
    - ports:
        {{- range uniq $kafkaPorts }}
        - port: {{ . }}
        {{- end }}
      {{- if $cluster }}
      to:
        - podSelector:
            matchLabels:
              strimzi.io/cluster: {{ $cluster }}
              strimzi.io/name: {{ $cluster }}-kafka
      {{- end }}
    {{- with $policy.extraEgress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* To anywhere: a node's DNS cache has an address that no selector selects. */}}
{{- define "orders.networkPolicy.dns" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
{{- end }}
