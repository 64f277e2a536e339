{{/* Most templates here take a context: root (the chart's own), component (cart, order, test), and for a service its port. */}}

{{- define "orders.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* As helm create does it, but six characters shorter: room for "-order" in 63. */}}
{{- define "orders.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "orders.componentName" -}}
{{ include "orders.fullname" .root }}-{{ .component }}
{{- end }}

{{/* What a selector selects by: never changes between versions of the chart. */}}
{{- define "orders.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orders.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Of pods: without the chart's version, or every new chart would restart them; podLabels come on top. */}}
{{- define "orders.podLabels" -}}
{{- $standard := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/part-of" "ordersystem" }}
{{- merge (include "orders.selectorLabels" . | fromYaml) (deepCopy (.podLabels | default dict)) (deepCopy .root.Values.commonLabels) $standard | toYaml }}
{{- end }}

{{- define "orders.labels" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $standard := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- merge (include "orders.podLabels" . | fromYaml) $standard | toYaml }}
{{- end }}

{{/* Takes root and image. */}}
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
