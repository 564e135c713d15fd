"""The audit log on its way to a SIEM: as OCSF or CEF, over HTTPS, syslog or into files, at least once and in order."""
