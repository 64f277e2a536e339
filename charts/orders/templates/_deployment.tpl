{{- define "orders.deployment" -}}
{{- $v := index .root.Values .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  replicas: {{ int $v.replicaCount }}
  revisionHistoryLimit: 3
  strategy:
    # Only one process at a time can open the database.
    type: Recreate
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
      # A service drains, flushes and closes in less than 20 s.
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
            - name: DATA_DIR
              value: /data
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
            {{- with $v.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
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
          volumeMounts:
            - name: data
              mountPath: /data
            - name: tmp
              mountPath: /tmp
            {{- include "orders.kafka.volumeMounts" . | trim | nindent 12 }}
            {{- with $v.volumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: data
          persistentVolumeClaim:
            claimName: {{ $v.persistence.existingClaim | default (include "orders.componentName" .) }}
        # SQLite sorts here what does not fit into its memory.
        - name: tmp
          emptyDir:
            sizeLimit: 256Mi
        {{- include "orders.kafka.volumes" . | trim | nindent 8 }}
        {{- with $v.volumes }}
        {{- toYaml . | nindent 8 }}
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
{{- end }}
