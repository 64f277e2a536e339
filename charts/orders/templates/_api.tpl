{{/*
How clients reach the API of a service: by HTTPS with a certificate, and with a token. Secrets are mounted
as directories, because the kubelet updates only these. The service reads what was renewed itself.
*/}}
{{- define "orders.api.env" -}}
{{- $auth := .root.Values.auth }}
{{- if (index .root.Values .component).tlsSecret -}}
- name: HTTP_TLS_CERT
  value: /etc/api/tls/tls.crt
- name: HTTP_TLS_KEY
  value: /etc/api/tls/tls.key
{{- end }}
{{- if $auth.issuer }}
- name: AUTH_ISSUER
  value: {{ $auth.issuer | quote }}
- name: AUTH_AUDIENCE
  value: {{ $auth.audience | quote }}
- name: AUTH_JWKS_URL
  value: {{ $auth.jwksURL | quote }}
{{- if $auth.caSecret }}
- name: AUTH_JWKS_CA
  value: /etc/api/issuer/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "orders.api.volumeMounts" -}}
{{- if (index .root.Values .component).tlsSecret -}}
- name: api-tls
  mountPath: /etc/api/tls
  readOnly: true
{{- end }}
{{- if .root.Values.auth.caSecret }}
- name: issuer-ca
  mountPath: /etc/api/issuer
  readOnly: true
{{- end }}
{{- end }}

{{- define "orders.api.volumes" -}}
{{- with (index .root.Values .component).tlsSecret -}}
- name: api-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- with .root.Values.auth.caSecret }}
# Only this key: the Secret may hold the CA's private key too.
- name: issuer-ca
  secret:
    secretName: {{ . }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}

{{/* http or https. */}}
{{- define "orders.api.scheme" -}}
{{- empty (index .root.Values .component).tlsSecret | ternary "http" "https" }}
{{- end }}

{{/* The URL of the API in the cluster, with the name that its certificate has. */}}
{{- define "orders.api.url" -}}
{{- $port := int (index .root.Values .component).service.port }}
{{- include "orders.api.scheme" . }}://{{ include "orders.componentName" . }}.{{ .root.Release.Namespace }}.svc:{{ $port }}
{{- end }}

{{/* The port of the issuer's server. */}}
{{- define "orders.issuer.port" -}}
{{- $url := urlParse .root.Values.auth.jwksURL }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") }}
{{- end }}
