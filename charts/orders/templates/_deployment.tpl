{{- define "orders.deployment" -}}
{{- $v := index .root.Values .component }}
{{- $database := .root.Values.database.existingSecret -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  {{- if not $v.autoscaling.enabled }}
  replicas: {{ int $v.replicaCount }}
  {{- end }}
  revisionHistoryLimit: 3
  # More than the startup probe allows, or a rollout fails while a large database is still checked.
  progressDeadlineSeconds: 2100
  strategy:
    {{- if $database }}
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
    {{- else }}
    # Only one process at a time can open the database.
    type: Recreate
    {{- end }}
  selector:
    matchLabels:
      {{- include "orders.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "orders.podLabels" (merge (dict "podLabels" $v.podLabels) .) | nindent 8 }}
      {{- with $v.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      serviceAccountName: {{ include "orders.serviceAccountName" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $v.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      # A service drains, flushes and closes in less than 20 s. With PostgreSQL, the 5 s of preStop
      # come before.
      terminationGracePeriodSeconds: 30
      {{- with .root.Values.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "orders.image" (dict "root" .root "image" $v.image) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          {{- with .root.Values.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - name: http
              containerPort: {{ .port }}
            - name: ops
              containerPort: {{ add .port 1 }}
          env:
            {{- include "orders.store.env" . | nindent 12 }}
            {{- with $v.maxBacklog }}
            - name: MAX_BACKLOG
              value: {{ int64 . | quote }}
            {{- end }}
            {{- with $v.maxBacklogBytes }}
            - name: MAX_BACKLOG_BYTES
              value: {{ int64 . | quote }}
            {{- end }}
            - name: LOG_LEVEL
              value: {{ $v.logLevel }}
            - name: LOG_FORMAT
              value: json
            {{- if dig "requests" "memory" "" ($v.resources | default dict) }}
            - name: GOMEMLIMIT
              valueFrom:
                resourceFieldRef:
                  containerName: {{ .component }}
                  resource: requests.memory
            {{- end }}
            {{- include "orders.kafka.env" . | nindent 12 }}
            {{- with include "orders.api.env" . | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $v.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- if $database }}
          # Requests still come until every node and load balancer knows that the pod ends.
          lifecycle:
            preStop:
              sleep:
                seconds: 5
          {{- end }}
          # /healthz succeeds once the database is open, also while the service catches up or
          # rebuilds. /readyz succeeds when the service can do its work. Before it opens the
          # database, a start checks it, which takes up to 15 s for each GB. The startup probe
          # allows for 120 GB.
          startupProbe:
            httpGet:
              path: /healthz
              port: ops
            periodSeconds: 1
            failureThreshold: 1800
          livenessProbe:
            httpGet:
              path: /healthz
              port: ops
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet:
              path: /readyz
              port: ops
            periodSeconds: 1
            timeoutSeconds: 3
            failureThreshold: 3
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with include "orders.volumeMounts" . | trim }}
          volumeMounts:
            {{- . | nindent 12 }}
          {{- end }}
      {{- with include "orders.volumes" . | trim }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with $v.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $database }}
      topologySpreadConstraints:
        {{- with $v.topologySpreadConstraints }}
        {{- toYaml . | nindent 8 }}
        {{- else }}
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - topologyKey: {{ . }}
          maxSkew: 1
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "orders.selectorLabels" $ | nindent 14 }}
          matchLabelKeys: [pod-template-hash]
        {{- end }}
        {{- end }}
      {{- end }}
{{- end }}

{{/* A Cart that needs neither files nor certificates has no mounts at all. */}}
{{- define "orders.volumeMounts" -}}
{{- include "orders.store.volumeMounts" . }}
{{ include "orders.kafka.volumeMounts" . }}
{{ include "orders.api.volumeMounts" . | trim }}
{{- with (index .root.Values .component).volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "orders.volumes" -}}
{{- include "orders.store.volumes" . }}
{{ include "orders.kafka.volumes" . }}
{{ include "orders.api.volumes" . | trim }}
{{- with (index .root.Values .component).volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
