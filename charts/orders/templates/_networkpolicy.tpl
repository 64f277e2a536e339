{{/*
Ingress to a service is allowed to its API and its metrics, from the peers in the values. Egress is allowed
to DNS, Kafka, the database and the issuer of tokens.
*/}}
{{- define "orders.networkPolicy" -}}
{{- $policy := .root.Values.networkPolicy }}
{{- $cluster := .root.Values.kafka.strimzi.cluster }}
{{- $kafkaPorts := list }}
{{- range (include "orders.kafka" . | fromYaml).brokers | splitList "," }}
{{- $kafkaPorts = append $kafkaPorts (trim . | regexFind "[0-9]+$") }}
{{- end }}
{{- $callers := $policy.http.from }}
{{- if .root.Values.test.enabled }}
{{- $test := include "orders.selectorLabels" (dict "root" .root "component" "test") | fromYaml }}
{{- $callers = prepend $callers (dict "podSelector" (dict "matchLabels" $test)) }}
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
    {{- with $callers }}
    - ports:
        - port: {{ $.port }}
          protocol: TCP
      from:
        {{- toYaml . | nindent 8 }}
    {{- end }}
    {{- with $policy.ops.from }}
    - ports:
        - port: {{ add $.port 1 }}
          protocol: TCP
      from:
        {{- toYaml . | nindent 8 }}
    {{- end }}
  egress:
    {{- include "orders.networkPolicy.dns" . | nindent 4 }}
    - ports:
        {{- range uniq $kafkaPorts }}
        - port: {{ . }}
          protocol: TCP
        {{- end }}
      {{- if $cluster }}
      to:
        - podSelector:
            matchLabels:
              strimzi.io/cluster: {{ $cluster }}
              strimzi.io/name: {{ $cluster }}-kafka
      {{- end }}
    {{- if .root.Values.database.existingSecret }}
    - ports:
        {{- range $policy.database.ports }}
        - port: {{ int . }}
          protocol: TCP
        {{- end }}
      {{- with $policy.database.to }}
      to:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
    {{- if .root.Values.auth.issuer }}
    - ports:
        {{- range $policy.issuer.ports | default (list (include "orders.issuer.port" .)) }}
        - port: {{ int . }}
          protocol: TCP
        {{- end }}
      {{- with $policy.issuer.to }}
      to:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
    {{- with $policy.extraEgress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Any address is allowed, because no selector selects the address of a node's DNS cache. */}}
{{- define "orders.networkPolicy.dns" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}
