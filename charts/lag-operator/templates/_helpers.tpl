{{- define "lag-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Like that of helm create, but seven characters shorter, so that "-topics" fits into the 63. */}}
{{- define "lag-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 56 | trimSuffix "-" }}
{{- end }}

{{/* The labels that selectors use. They never change between versions of the chart. */}}
{{- define "lag-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lag-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The labels of pods. The chart's version is not among them, or each new version would restart the pods. */}}
{{- define "lag-operator.podLabels" -}}
{{- $own := merge (include "lag-operator.selectorLabels" . | fromYaml) (deepCopy .Values.podLabels) }}
{{- merge $own (include "lag-operator.standardLabels" . | fromYaml) | toYaml }}
{{- end }}

{{- define "lag-operator.standardLabels" -}}
{{- $standard := dict "app.kubernetes.io/version" .Chart.AppVersion "app.kubernetes.io/part-of" "ordersystem" }}
{{- merge (include "lag-operator.selectorLabels" . | fromYaml) (deepCopy .Values.commonLabels) $standard | toYaml }}
{{- end }}

{{- define "lag-operator.labels" -}}
{{- $chart := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $standard := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .Release.Service }}
{{- merge (include "lag-operator.standardLabels" . | fromYaml) $standard | toYaml }}
{{- end }}

{{- define "lag-operator.metadata" -}}
name: {{ include "lag-operator.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "lag-operator.labels" . | nindent 2 }}
{{- end }}

{{- define "lag-operator.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "lag-operator.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "lag-operator.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{/* The namespaces whose ConsumerGroups the operator watches, as a list with the release's own. */}}
{{- define "lag-operator.watchNamespaces" -}}
{{- prepend (.Values.watchNamespaces | default list) .Release.Namespace | uniq | toYaml }}
{{- end }}

{{/*
Helm removes a key that a user sets to null, and with it the chart's default. This gives defaults back,
before a template reads a value. In the maps that become fields of pods as they are, null leaves out a
field, as users of Helm expect.
*/}}
{{- define "lag-operator.defaults" -}}
{{- include "lag-operator.complete" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{- define "lag-operator.complete" -}}
{{- $values := first . }}
{{- range $key, $default := last . }}
{{- if not (has $key (list "resources" "podSecurityContext" "securityContext")) }}
{{- if kindIs "invalid" (index $values $key) }}
{{- $_ := set $values $key $default }}
{{- else if kindIs "map" $default }}
{{- include "lag-operator.complete" (list (index $values $key) $default) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
