#!/usr/bin/env bash
# Writes a minimal Debian 13 as a tar archive to standard output. Nothing that only people read is in it, and what is
# set here for apt and dpkg holds for every image that is built on it.
set -euo pipefail

# Packages with alternatives (Java, Maven) link to manual pages and fail where the folder is missing.
exec mmdebstrap --variant=minbase --include=ca-certificates \
  --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Dir::Cache::pkgcache ""' \
  --aptopt='Dir::Cache::srcpkgcache ""' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/i18n/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='mkdir --parents "$1/usr/share/man/man1"' \
  trixie -
