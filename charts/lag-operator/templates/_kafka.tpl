{{/*
The Kafka clusters, in the same form for Strimzi and for others: name, brokers, protocol, patterns, and
where they apply caSecret, certSecret with its keys cert and key, mechanism, saslSecret, tokenEndpoint,
tokenCASecret, scope and kafkaTopics.
*/}}
{{- define "lag-operator.clusters" -}}
{{- with .Values.kafka.strimzi }}
{{- if .cluster }}
- name: {{ .cluster | quote }}
  brokers: {{ .cluster }}-kafka-bootstrap.{{ $.Release.Namespace }}.svc:{{ int .port }}
  protocol: ssl
  caSecret: {{ .cluster }}-cluster-ca-cert
  certSecret: {{ .user | quote }}
  cert: user.crt
  key: user.key
  {{- include "lag-operator.patterns" . | nindent 2 }}
  kafkaTopics:
    namespace: {{ $.Release.Namespace | quote }}
    cluster: {{ .cluster | quote }}
{{- end }}
{{- end }}
{{- range .Values.kafka.external }}
- name: {{ .name | quote }}
  brokers: {{ .bootstrapServers | quote }}
  protocol: {{ .securityProtocol | default "ssl" }}
  caSecret: {{ .caSecret | quote }}
  certSecret: {{ .user | default .clientCertSecret | quote }}
  cert: {{ empty .user | ternary "tls.crt" "user.crt" }}
  key: {{ empty .user | ternary "tls.key" "user.key" }}
  mechanism: {{ .saslMechanism | quote }}
  saslSecret: {{ .saslSecret | quote }}
  tokenEndpoint: {{ .tokenEndpoint | quote }}
  tokenCASecret: {{ .tokenCASecret | quote }}
  scope: {{ .scope | quote }}
  {{- include "lag-operator.patterns" . | nindent 2 }}
  {{- with .kafkaTopics }}
  kafkaTopics:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The patterns of groups and topics, empty if they are not set. */}}
{{- define "lag-operator.patterns" -}}
discover: {{ .discover | default "" | quote }}
excludeGroups: {{ .excludeGroups | default "" | quote }}
topics: {{ .topics | default "" | quote }}
excludeTopics: {{ .excludeTopics | default "" | quote }}
{{- end }}

{{/* The operator's configuration file. */}}
{{- define "lag-operator.config" -}}
interval: {{ .Values.interval }}
maxSeries: {{ int64 .Values.maxSeries }}
clusters:
  {{- range include "lag-operator.clusters" . | fromYamlArray }}
  {{- $dir := printf "/etc/kafka/%s" .name }}
  - name: {{ .name | quote }}
    bootstrapServers: {{ .brokers | quote }}
    securityProtocol: {{ .protocol }}
    {{- if or .caSecret .certSecret }}
    tls:
      {{- if .caSecret }}
      ca: {{ $dir }}/ca
      {{- end }}
      {{- if .certSecret }}
      cert: {{ $dir }}/user/{{ .cert }}
      key: {{ $dir }}/user/{{ .key }}
      {{- end }}
    {{- end }}
    {{- if .mechanism }}
    sasl:
      mechanism: {{ .mechanism }}
      {{- if .saslSecret }}
      usernameFile: {{ $dir }}/sasl/username
      passwordFile: {{ $dir }}/sasl/password
      {{- end }}
      {{- with .tokenEndpoint }}
      tokenEndpoint: {{ . | quote }}
      {{- end }}
      {{- if .tokenCASecret }}
      tokenCA: {{ $dir }}/token-ca
      {{- end }}
      {{- with .scope }}
      scope: {{ . | quote }}
      {{- end }}
    {{- end }}
    {{- $cluster := . }}
    {{- range $key := list "discover" "excludeGroups" "topics" "excludeTopics" }}
    {{- with get $cluster $key }}
    {{ $key }}: {{ . | quote }}
    {{- end }}
    {{- end }}
    {{- with .kafkaTopics }}
    kafkaTopics:
      namespace: {{ .namespace | quote }}
      cluster: {{ .cluster | quote }}
    {{- end }}
  {{- end }}
watchNamespaces: {{ .Values.watchAnyNamespace | ternary "[]" (include "lag-operator.watchNamespaces" . | fromYamlArray | toJson) }}
{{- end }}

{{/*
Secrets are mounted as directories, because the kubelet updates only these when a certificate is renewed.
The pods stay in ContainerCreating until the Secrets exist, so the operator waits for its KafkaUser.
*/}}
{{- define "lag-operator.volumeMounts" -}}
{{- range include "lag-operator.clusters" . | fromYamlArray }}
{{- $name := .name }}
{{- range $what, $secret := dict "ca" .caSecret "user" .certSecret "sasl" .saslSecret "token-ca" .tokenCASecret }}
{{- if $secret }}
- name: {{ $what }}-{{ $name }}
  mountPath: /etc/kafka/{{ $name }}/{{ $what }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "lag-operator.volumes" -}}
{{- range include "lag-operator.clusters" . | fromYamlArray }}
{{- if .caSecret }}
- name: ca-{{ .name }}
  secret:
    secretName: {{ .caSecret | quote }}
{{- end }}
{{- if .certSecret }}
- name: user-{{ .name }}
  secret:
    secretName: {{ .certSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ .cert }}
        path: {{ .cert }}
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- if .saslSecret }}
- name: sasl-{{ .name }}
  secret:
    secretName: {{ .saslSecret | quote }}
    defaultMode: 0440
    items:
      - key: username
        path: username
      - key: password
        path: password
{{- end }}
{{- if .tokenCASecret }}
- name: token-ca-{{ .name }}
  secret:
    secretName: {{ .tokenCASecret | quote }}
{{- end }}
{{- end }}
{{- end }}
