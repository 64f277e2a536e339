{{/*
How a service connects to Kafka, in the same form for Strimzi and for any other Kafka: brokers, protocol,
and where they apply caSecret, certSecret with its keys cert and key, mechanism and saslSecret.
*/}}
{{- define "orders.kafka" -}}
{{- $kafka := .root.Values.kafka }}
{{- $own := (index .root.Values .component).kafka }}
{{- if $kafka.strimzi.cluster }}
brokers: {{ $kafka.strimzi.cluster }}-kafka-bootstrap.{{ .root.Release.Namespace }}.svc:{{ int $kafka.strimzi.port }}
protocol: ssl
caSecret: {{ $kafka.strimzi.cluster }}-cluster-ca-cert
certSecret: {{ $kafka.prefix }}{{ $own.user }}
cert: user.crt
key: user.key
{{- else }}
brokers: {{ $kafka.external.bootstrapServers | quote }}
protocol: {{ $kafka.external.securityProtocol }}
caSecret: {{ $kafka.external.caSecret | quote }}
certSecret: {{ $own.clientCertSecret | quote }}
cert: tls.crt
key: tls.key
mechanism: {{ $kafka.external.saslMechanism | quote }}
saslSecret: {{ $own.saslSecret | quote }}
{{- end }}
{{- end }}

{{- define "orders.kafka.env" -}}
{{- with include "orders.kafka" . | fromYaml -}}
- name: KAFKA_BROKERS
  value: {{ .brokers | quote }}
- name: KAFKA_SECURITY_PROTOCOL
  value: {{ .protocol }}
{{- with $.root.Values.kafka.prefix }}
- name: KAFKA_PREFIX
  value: {{ . | quote }}
{{- end }}
{{- if .caSecret }}
- name: KAFKA_TLS_CA
  value: /etc/kafka/ca
{{- end }}
{{- if .certSecret }}
- name: KAFKA_TLS_CERT
  value: /etc/kafka/user/{{ .cert }}
- name: KAFKA_TLS_KEY
  value: /etc/kafka/user/{{ .key }}
{{- end }}
{{- if .saslSecret }}
- name: KAFKA_SASL_MECHANISM
  value: {{ .mechanism }}
- name: KAFKA_SASL_USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ .saslSecret }}
      key: username
- name: KAFKA_SASL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .saslSecret }}
      key: password
{{- end }}
{{- end }}
{{- end }}

{{/*
Secrets are mounted as directories, because the kubelet updates only these when a certificate is renewed.
The services watch the files. A pod stays in ContainerCreating until its Secrets exist, so a service waits
for its KafkaUser.
*/}}
{{- define "orders.kafka.volumeMounts" -}}
{{- with include "orders.kafka" . | fromYaml -}}
{{- if .caSecret -}}
- name: kafka-ca
  mountPath: /etc/kafka/ca
  readOnly: true
{{- end }}
{{- if .certSecret }}
- name: kafka-user
  mountPath: /etc/kafka/user
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "orders.kafka.volumes" -}}
{{- with include "orders.kafka" . | fromYaml -}}
{{- if .caSecret -}}
- name: kafka-ca
  secret:
    secretName: {{ .caSecret }}
{{- end }}
{{- if .certSecret }}
- name: kafka-user
  secret:
    secretName: {{ .certSecret }}
    defaultMode: 0440
    items:
      - key: {{ .cert }}
        path: {{ .cert }}
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
