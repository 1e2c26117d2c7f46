{{- define "agentpay-billing.name" -}}
{{- $long := printf "%s-%s" .Release.Name .Chart.Name }}
{{- ternary .Release.Name $long (contains .Chart.Name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "agentpay-billing.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end }}

{{- define "agentpay-billing.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "agentpay-billing.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "agentpay-billing.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "agentpay-billing.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Where the database is. Arguments: the root, the name of the secret. */}}
{{- define "agentpay-billing.database" -}}
{{- if (index . 0).Values.cells -}}
- name: CELLS_FILE
  value: /etc/agentpay-billing/cells.toml
{{- else -}}
{{- include "agentpay-billing.secretVariable" (list "DATABASE_URL" (index . 1)) }}
{{- end }}
{{- end }}

{{/* The mount and the volume of CELLS_FILE. */}}
{{- define "agentpay-billing.cellsMount" -}}
volumeMounts:
  - { name: cells, mountPath: /etc/agentpay-billing, readOnly: true }
{{- end }}
{{- define "agentpay-billing.cellsVolume" -}}
volumes:
  - name: cells
    secret: { secretName: {{ . | quote }}, items: [{ key: CELLS_FILE, path: cells.toml }] }
{{- end }}

{{/* An environment variable from a secret. Arguments: its name, the name of the secret. */}}
{{- define "agentpay-billing.secretVariable" -}}
- name: {{ index . 0 }}
  valueFrom: { secretKeyRef: { name: {{ index . 1 | quote }}, key: {{ index . 0 }} } }
{{- end }}
