{{- define "ifedicl.name" -}}
{{- printf "%s-%s" .Release.Name "ifedicl" | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "ifedicl.selector" -}}
app.kubernetes.io/name: ifedicl
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ifedicl.labels" -}}
{{ include "ifedicl.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The arguments of `ifedicl serve`, as a YAML list. */ -}}
{{- define "ifedicl.args" -}}
{{- $name := include "ifedicl.name" . -}}
{{- if not (or .Values.adapters .Values.store.secret) }}{{ fail "adapters: none, and no store; give one of the two" }}{{ end -}}
{{- if not (or .Values.withoutKeys .Values.keys.secret) }}{{ fail "keys.secret: none; name a Secret with the file that `ifedicl key` wrote, or set withoutKeys to true" }}{{ end -}}
{{- range .Values.adapters }}
{{- if .hub }}
- {{ printf "%s=hub:%s" .name .hub | quote }}
{{- else }}
{{- if not $.Values.adapterClaim }}{{ fail (printf "adapterClaim: none, and the adapter %s is a path below it" .name) }}{{ end }}
- {{ printf "%s=/adapters/%s" .name .path | quote }}
{{- end }}
{{- end }}
{{- if .Values.store.secret }}
- --store
- $(IFEDICL_SERVE_STORE)
{{- with .Values.store.federation }}
- --federation
- {{ . | quote }}
{{- end }}
{{- end }}
{{- with .Values.model }}
- --model
- {{ . | quote }}
{{- end }}
{{- if .Values.withoutKeys }}
- --without-keys
{{- else }}
- --keys
- /etc/ifedicl/keys.txt
{{- end }}
{{- $own := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- if .Values.ingress.enabled }}{{ $own = append $own .Values.ingress.host }}{{ end -}}
{{- range concat $own .Values.allowedHosts | uniq }}
- --allowed-host
- {{ . | quote }}
{{- end }}
{{- if .Values.telemetry }}
- --telemetry
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
