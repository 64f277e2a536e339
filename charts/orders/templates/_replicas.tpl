{{/* What several replicas need, besides the Deployment. They need PostgreSQL. */}}
{{- define "orders.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "orders.selectorLabels" . | nindent 6 }}
{{- end }}

{{/* Cart by its CPU: what more replicas share is the work on requests. */}}
{{- define "orders.cart.autoscaler" -}}
{{- $a := .root.Values.cart.autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "orders.componentName" . }}
  minReplicas: {{ int $a.minReplicas }}
  maxReplicas: {{ int $a.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: AverageValue
          averageValue: {{ $a.targetCPU | quote }}
{{- end }}

{{/* Order by its lag. k8s/keda/scaled-object.yaml gives the reasons. */}}
{{- define "orders.order.autoscaler" -}}
{{- $a := .root.Values.order.autoscaling }}
{{- $cluster := $a.kafkaCluster | default .root.Values.kafka.strimzi.cluster -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "orders.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    name: {{ include "orders.componentName" . }}
  minReplicaCount: {{ int $a.minReplicas }}
  maxReplicaCount: {{ int $a.maxReplicas }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp:
          stabilizationWindowSeconds: 30
        scaleDown:
          stabilizationWindowSeconds: 600
          policies:
            - type: Pods
              value: 1
              periodSeconds: 300
  fallback:
    failureThreshold: 6
    replicas: {{ int $a.minReplicas }}
    behavior: currentReplicasIfHigher
  triggers:
    - type: prometheus
      metricType: Value
      metadata:
        serverAddress: {{ $a.prometheus }}
        query: max(kafka_consumergroup_topic_max_lag_seconds{kafka_cluster={{ $cluster | quote }},consumergroup={{ print .root.Values.kafka.prefix "order-service" | quote }}})
        threshold: {{ int $a.targetLagSeconds | quote }}
        ignoreNullValues: "false"
{{- end }}
