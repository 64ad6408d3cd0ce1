{{/* Image of a component: (dict "root" $ "part" .Values.ztunnel) */}}
{{- define "ambit.image" -}}
{{- $path := printf "%s/%s" .root.Values.hub .part.image.name -}}
{{- if .part.image.digest -}}
{{- printf "%s@%s" $path .part.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (.root.Values.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Labels of everything: (dict "root" $ "name" "ztunnel") */}}
{{- define "ambit.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Credentials for the registry. */}}
{{- define "ambit.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How waypoints are deployed, as the control plane is told it. */}}
{{- define "ambit.waypoints" -}}
{{- $own := dict "imagePullPolicy" .Values.imagePullPolicy "imagePullSecrets" .Values.imagePullSecrets "network" .Values.network
      "logLevel" .Values.logLevel "logFormat" .Values.logFormat "prometheusAnnotations" .Values.prometheusAnnotations -}}
{{- with .Values.meshConfig.trustDomainAliases -}}
{{- $names := dict "AMBIT_TRUST_DOMAINS" (prepend . $.Values.trustDomain | uniq | join ",") -}}
{{- $own = set $own "env" (merge (deepCopy $.Values.global.waypoint.env) $names) -}}
{{- end -}}
{{- mergeOverwrite (omit .Values.global.waypoint "image") $own | toJson -}}
{{- end -}}

{{/* How pods are given proxies of their own, as the control plane is told it. */}}
{{- define "ambit.injector" -}}
{{- $env := dict "AMBIT_ENGINE" .Values.ztunnel.engine -}}
{{- with .Values.meshConfig.trustDomainAliases -}}
{{- $env = set $env "AMBIT_TRUST_DOMAINS" (prepend . $.Values.trustDomain | uniq | join ",") -}}
{{- end -}}
{{- $own := dict "imagePullPolicy" .Values.imagePullPolicy "imagePullSecrets" .Values.imagePullSecrets "network" .Values.network
      "logLevel" .Values.logLevel "logFormat" .Values.logFormat "prometheusAnnotations" .Values.prometheusAnnotations
      "dnsCapture" .Values.cni.dnsCapture "captureExclusions" .Values.cni.captureExclusions
      "env" (merge (deepCopy .Values.sidecarInjector.env) $env) -}}
{{- mergeOverwrite (deepCopy (omit .Values.sidecarInjector "enabled")) $own | toJson -}}
{{- end -}}

{{/* Further environment, a map. */}}
{{- define "ambit.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
{{- /* To helm each number of a file is a fraction, and it writes large ones with an exponent, which no program reads. */}}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
  value: {{ int64 $value | quote }}
{{- else }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Annotations for Prometheus: (dict "root" $ "port" 15020) */}}
{{- define "ambit.scrape" -}}
{{- if .root.Values.prometheusAnnotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end -}}

{{/* Settings of the mesh, under Istio's names. */}}
{{- define "ambit.mesh" -}}
{{- $own := dict "trustDomain" .Values.trustDomain "rootNamespace" .Release.Namespace
      "defaultConfig" (dict "discoveryAddress" (printf "istiod.%s.svc:15012" .Release.Namespace)) -}}
{{- mergeOverwrite (deepCopy .Values.meshConfig) $own | toYaml -}}
{{- end -}}

{{/* Of what exists only while the release is deleted, in this order. What failed stays, to be looked at, until it is tried again. */}}
{{- define "ambit.removal" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The Leases by which replicas of the control plane take turns in writing. */}}
{{- define "ambit.leases" -}}
istio-namespace-controller-election, istio-status-leader, istio-gateway-status-leader, istio-ip-autoallocate, istio-leader, istio-node-untaint, istio-machines
{{- end -}}
