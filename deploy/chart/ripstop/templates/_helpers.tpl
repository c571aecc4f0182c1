{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "ripstop.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The agent's further arguments as words of a shell, each behind a space. */}}
{{- define "ripstop.args" -}}
{{- range .Values.flannel.args }} '{{ . | toString | replace "'" "'\\''" }}'{{ end }}
{{- end }}

{{- define "ripstop.netConf" -}}
{{- if not (or .Values.podCidr .Values.podCidrv6) }}{{ fail "podCidr and podCidrv6 are both empty: give the cluster network" }}{{ end -}}
{
{{- if .Values.podCidr }}
  "Network": {{ .Values.podCidr | quote }},
{{- else }}
  "EnableIPv4": false,
{{- end }}
{{- if .Values.podCidrv6 }}
  "IPv6Network": {{ .Values.podCidrv6 | quote }},
  "EnableIPv6": true,
{{- end }}
{{- if .Values.flannel.enableNFTables }}
  "EnableNFTables": true,
{{- end }}
  "Backend": {
{{- if eq .Values.flannel.backend "vxlan" }}
{{- with .Values.flannel.backendPort }}
    "Port": {{ int . }},
{{- end }}
{{- with .Values.flannel.vni }}
    "VNI": {{ int . }},
{{- end }}
{{- with .Values.flannel.mtu }}
    "MTU": {{ int . }},
{{- end }}
{{- if .Values.flannel.directRouting }}
    "DirectRouting": true,
{{- end }}
{{- end }}
    "Type": {{ .Values.flannel.backend | quote }}
  }
}
{{- end }}
