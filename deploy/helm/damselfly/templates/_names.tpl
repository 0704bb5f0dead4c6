{{/* The name of every object. */}}
{{- define "damselfly.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of objects that belong to no namespace: two releases must not share one. */}}
{{- define "damselfly.clusterName" -}}
{{- $full := include "damselfly.fullname" . -}}
{{- if eq $full .Release.Namespace -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s" .Release.Namespace $full | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods; it may never change. */}}
{{- define "damselfly.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{/* Labels of every object. Helm adds its own when it installs; plain manifests have none of it. */}}
{{- define "damselfly.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "damselfly.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "damselfly.driver" -}}csi.damselfly.dev{{- end -}}
{{- define "damselfly.taint" -}}{{ include "damselfly.driver" . }}/agent-not-ready{{- end -}}
{{- define "damselfly.socket" -}}{{ .Values.socketDirectory }}/agent.sock{{- end -}}

{{/* The pod's containers besides the agent. */}}
{{- define "damselfly.others" -}}
- prepare
- prepare-socket
- csi
{{- if not .Values.csi.selfRegister }}
- registrar
{{- end }}
{{- if .Values.provisioner.enabled }}
- provisioner
{{- end }}
{{- end -}}

{{/* Who of the pod's containers speaks with the API: only those get the token. */}}
{{- define "damselfly.agentUsesAPI" -}}
{{- if or (eq .Values.agent.membership "kubernetes") .Values.agent.zoneFromNode }}yes{{ end -}}
{{- end -}}
{{- define "damselfly.podUsesAPI" -}}
{{- if or (include "damselfly.agentUsesAPI" .) .Values.startupTaint.enabled .Values.provisioner.enabled }}yes{{ end -}}
{{- end -}}
{{- define "damselfly.apiMount" -}}
- name: api-access
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

{{/* The Secret with the agents' certificate, its key, and the authority's certificate. */}}
{{- define "damselfly.tlsSecret" -}}
{{- default (printf "%s-tls" (include "damselfly.fullname" . | trunc 59)) .Values.certificates.secretName -}}
{{- end -}}

{{/* Combinations that look right and are not. */}}
{{- define "damselfly.check" -}}
{{- if and .Values.storageClasses (not .Values.provisioner.enabled) -}}
{{- fail "storageClasses need provisioner.enabled: without it nobody makes their volumes" -}}
{{- end -}}
{{- if and .Values.startupTaint.enabled (not .Values.csi.selfRegister) -}}
{{- fail "startupTaint.enabled needs csi.selfRegister: only who registers knows when the kubelet has accepted" -}}
{{- end -}}
{{- if and .Values.agent.selectNodes (ne .Values.agent.membership "kubernetes") -}}
{{- fail "agent.selectNodes needs agent.membership=kubernetes: it tells which agent is on which node" -}}
{{- end -}}
{{- if and .Values.certificates.enabled (not .Values.certificates.issuerRef.name) (not .Values.certificates.secretName) -}}
{{- fail "certificates.enabled needs certificates.issuerRef.name, or certificates.secretName" -}}
{{- end -}}
{{- $ports := list (int .Values.agent.peersPort) (int .Values.agent.adminPort) (int .Values.csi.adminPort) -}}
{{- if ne (len (uniq $ports)) 3 -}}
{{- fail "two of agent.peersPort, agent.adminPort and csi.adminPort are the same port" -}}
{{- end -}}
{{- end -}}
