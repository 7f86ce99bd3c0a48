#!/usr/bin/env bash
# The generated pages are those of this program; the target `docs` writes them.
set -eu
command -v python3 >/dev/null || { echo "skipped: needs python3"; exit 77; }
exec python3 "${TESS_SOURCE_DIR:?}/tools/make_man" --check "${TESSERA_BIN:?}"
