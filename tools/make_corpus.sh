#!/bin/bash
# Rebuild examples/corpus/ from packages of Debian 12: download, unpack, extract, compress.
# Needs apt with a configured mirror, dpkg-deb, python3, xz. Usage: tools/make_corpus.sh [OUT]
set -euo pipefail
source_dir=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$source_dir/examples/corpus}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$out"
out=$(cd "$out" && pwd)

cd "$work"
apt-get download postgresql-doc-15 bible-kjv bible-kjv-text
for package in *.deb; do
    dpkg-deb -x "$package" unpacked
done

# The text of the Bible is packed; its own program unpacks it: one verse a line, "Gen1:1 ...".
unpacked/usr/bin/bible -p unpacked/usr/lib/ -l100000 gen1:1-rev22:21 >kjv.txt
python3 "$source_dir/tools/make_corpus.py" unpacked/usr/share/doc/postgresql-doc-15/html kjv.txt "$work"

for name in postgresql.train postgresql.eval kjv.train kjv.eval; do
    xz -9e --threads=1 --check=crc64 -c "$name.jsonl" >"$out/$name.jsonl.xz"
done
{
    echo "made by tools/make_corpus.sh from these packages of Debian 12:"
    for package in *.deb; do
        echo "  $(dpkg-deb -W --showformat='${Package} ${Version} ${Architecture}' "$package")"
    done
    echo "SHA-256 of the uncompressed files:"
    sha256sum ./*.jsonl | sed 's/^/  /; s, \./, ,'
} >"$out/ORIGIN"
python3 "$source_dir/tools/make_corpus.py" --license \
    unpacked/usr/share/doc/postgresql-doc-15/html/legalnotice.html >"$out/LICENSE"
ls -l "$out"
