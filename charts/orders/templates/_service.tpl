{{/* All objects of one service. */}}
{{- define "orders.service" -}}
{{- $v := index .root.Values .component }}
{{- $parts := list "orders.deployment" "orders.kubernetesService" }}
{{- if $v.serviceAccount.create }}{{ $parts = append $parts "orders.serviceAccount" }}{{ end }}
{{- if .root.Values.database.existingSecret }}
{{- $parts = append $parts "orders.podDisruptionBudget" }}
{{- if $v.autoscaling.enabled }}{{ $parts = append $parts (printf "orders.%s.autoscaler" .component) }}{{ end }}
{{- else if not $v.persistence.existingClaim }}{{ $parts = append $parts "orders.claim" }}
{{- end }}
{{- if .root.Values.networkPolicy.enabled }}{{ $parts = append $parts "orders.networkPolicy" }}{{ end }}
{{- if $v.ingress.enabled }}{{ $parts = append $parts "orders.ingress" }}{{ end }}
{{- if $v.httpRoute.enabled }}{{ $parts = append $parts "orders.httpRoute" }}{{ end }}
{{- range $parts }}
---
{{ include . $ }}
{{- end }}
{{- end }}

{{/* The metadata of an object. Takes name too, which is the component's unless given. */}}
{{- define "orders.metadata" -}}
name: {{ .name | default (include "orders.componentName" .) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "orders.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "orders.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "orders.metadata" (merge (dict "name" (include "orders.serviceAccountName" .) "annotations" $account.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}

{{- define "orders.kubernetesService" -}}
{{- $service := (index .root.Values .component).service -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "orders.metadata" (merge (dict "annotations" $service.annotations) .) | nindent 2 }}
spec:
  type: {{ $service.type }}
  selector:
    {{- include "orders.selectorLabels" . | nindent 4 }}
  ports:
    - name: http
      port: {{ int $service.port }}
      targetPort: http
      appProtocol: {{ include "orders.api.scheme" . }}
    {{- if eq $service.type "ClusterIP" }}
    - name: ops
      port: {{ add .port 1 }}
      targetPort: ops
      appProtocol: http
    {{- end }}
{{- end }}
