{{- define "orders.ingress" -}}
{{- $v := index .root.Values .component -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "orders.metadata" (merge (dict "annotations" $v.ingress.annotations) .) | nindent 2 }}
spec:
  {{- with $v.ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with $v.ingress.tls }}
  tls:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range $v.ingress.hosts }}
    - host: {{ .host | quote }}
      http:
        paths:
          {{- range .paths | default (list (dict "path" "/" "pathType" "Prefix")) }}
          - path: {{ .path }}
            pathType: {{ .pathType | default "Prefix" }}
            backend:
              service:
                name: {{ include "orders.componentName" $ }}
                port:
                  name: http
          {{- end }}
    {{- end }}
{{- end }}

{{- define "orders.httpRoute" -}}
{{- $v := index .root.Values .component -}}
{{- $service := dict "group" "" "kind" "Service" "name" (include "orders.componentName" .) "port" (int $v.service.port) "weight" 1 -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "orders.metadata" (merge (dict "annotations" $v.httpRoute.annotations) .) | nindent 2 }}
spec:
  parentRefs:
    {{- range $v.httpRoute.parentRefs }}
    - {{- mergeOverwrite (dict "group" "gateway.networking.k8s.io" "kind" "Gateway") . | toYaml | nindent 6 }}
    {{- end }}
  {{- with $v.httpRoute.hostnames }}
  hostnames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range $v.httpRoute.rules }}
    - {{- merge (deepCopy .) (dict "backendRefs" (list $service)) | toYaml | nindent 6 }}
    {{- end }}
{{- end }}
