{{/*
Where a service keeps its data: SQLite on the volume /data, or PostgreSQL. With PostgreSQL only Order has
/data, for what audits have read, and a pod starts without it.
*/}}
{{- define "orders.store.files" -}}
{{- if or (not .root.Values.database.existingSecret) (eq .component "order") }}yes{{ end }}
{{- end }}

{{- define "orders.store.env" -}}
{{- $v := index .root.Values .component }}
{{- $database := .root.Values.database }}
{{- if include "orders.store.files" . -}}
- name: DATA_DIR
  value: /data
{{- end }}
{{- if and $database.existingSecret $v.auditCacheBytes }}
- name: AUDIT_CACHE_BYTES
  value: {{ int64 $v.auditCacheBytes | quote }}
{{- end }}
{{- with $database.existingSecret }}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $database.key }}
{{- end }}
{{- with $database.sslMode }}
- name: PGSSLMODE
  value: {{ . }}
{{- end }}
{{- if $database.caSecret }}
- name: PGSSLROOTCERT
  value: /etc/database/ca/ca.crt
{{- end }}
{{- end }}

{{- define "orders.store.volumeMounts" -}}
{{- if include "orders.store.files" . -}}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- end }}
{{- if .root.Values.database.caSecret }}
- name: database-ca
  mountPath: /etc/database/ca
  readOnly: true
{{- end }}
{{- end }}

{{- define "orders.store.volumes" -}}
{{- $v := index .root.Values .component }}
{{- $database := .root.Values.database }}
{{- if include "orders.store.files" . -}}
- name: data
  {{- if $database.existingSecret }}
  # A pod that takes more is evicted, so Order itself keeps to less.
  emptyDir:
    sizeLimit: {{ div (mul (int64 $v.auditCacheBytes) 5) 4 | quote }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ $v.persistence.existingClaim | default (include "orders.componentName" .) }}
  {{- end }}
# SQLite sorts here what does not fit into its memory.
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- end }}
{{- with $database.caSecret }}
# Only this key: the Secret may hold the CA's private key too.
- name: database-ca
  secret:
    secretName: {{ . }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}

{{- define "orders.claim" -}}
{{- $p := (index .root.Values .component).persistence -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "orders.metadata" (merge (dict "annotations" (merge (dict "helm.sh/resource-policy" "keep") (deepCopy $p.annotations))) .) | nindent 2 }}
spec:
  accessModes:
    {{- toYaml $p.accessModes | nindent 4 }}
  {{- with $p.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $p.size }}
{{- end }}
