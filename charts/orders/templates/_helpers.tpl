{{/*
Most templates here take a dictionary: root is the chart's context, component is cart, order or test,
and port is the port of a service.
*/}}

{{- define "orders.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Like that of helm create, but six characters shorter, so that "-order" fits into the 63. */}}
{{- define "orders.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "orders.componentName" -}}
{{ include "orders.fullname" .root }}-{{ .component }}
{{- end }}

{{/* The labels that selectors use. They never change between versions of the chart. */}}
{{- define "orders.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orders.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* The labels of pods. The chart's version is not among them, or each new version would restart the pods. */}}
{{- define "orders.podLabels" -}}
{{- $standard := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/part-of" "ordersystem" }}
{{- merge (include "orders.selectorLabels" . | fromYaml) (deepCopy (.podLabels | default dict)) (deepCopy .root.Values.commonLabels) $standard | toYaml }}
{{- end }}

{{- define "orders.labels" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $standard := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- merge (include "orders.podLabels" . | fromYaml) $standard | toYaml }}
{{- end }}

{{/* The full name of an image. Takes root and image. */}}
{{- define "orders.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}
{{- else }}:{{ .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "orders.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount }}
{{- default ($account.create | ternary (include "orders.componentName" .) "default") $account.name }}
{{- end }}

{{/*
Helm removes a key that a user sets to null, and with it the chart's default. This gives defaults back,
before a template reads a value. In the maps that become fields of pods as they are, null leaves out a
field, as users of Helm expect.
*/}}
{{- define "orders.defaults" -}}
{{- include "orders.complete" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{- define "orders.complete" -}}
{{- $values := first . }}
{{- range $key, $default := last . }}
{{- if not (has $key (list "resources" "podSecurityContext" "securityContext")) }}
{{- if kindIs "invalid" (index $values $key) }}
{{- $_ := set $values $key $default }}
{{- else if kindIs "map" $default }}
{{- include "orders.complete" (list (index $values $key) $default) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
