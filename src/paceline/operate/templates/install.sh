#!/bin/sh
# Installs the bundle that this file lies in: @@{benchmark} with the engine @@{engine}.
#
#   sh install.sh [PREFIX]      PREFIX is ~/paceline where none is given
#
# It needs Python @@{python} and no network. Every file is verified first; one that is missing,
# changed or not of this bundle ends it. The model and the data stay where they are. The same
# command again changes nothing that is well.
set -eu

bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=${1:-$HOME/paceline}
case $prefix in
/*) ;;
*) prefix=$PWD/$prefix ;;
esac
cd "$bundle"

fail() {
    printf 'error: %s\n  Next: %s\n' "$1" "$2" >&2
    exit 2
}

case $prefix/ in
"$bundle"/*) fail "$prefix lies in the bundle, which stays as it was carried." \
    "sh install.sh PREFIX, a folder elsewhere" ;;
esac

machine='@@{machine}'
if [ -n "$machine" ] && [ "$(uname -m)" != "$machine" ]; then
    fail "this bundle is for $machine, and this machine is $(uname -m)." \
        "paceline bundle ... --platform for this machine"
fi
python=
for candidate in "${PYTHON:-}" python@@{python} python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
        [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = @@{python} ]; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "there is no Python @@{python} here, and the wheels are for it." \
    "PYTHON=/path/to/python@@{python} sh install.sh, or paceline bundle ... --python for yours"

echo "verifying $(wc -l <SHA256SUMS) files"
[ -f SHA256SUMS ] || fail "SHA256SUMS is missing." "copy the bundle again"
if ! LC_ALL=C sha256sum --check --quiet --strict SHA256SUMS >&2; then
    fail "the files named above are missing or changed: nothing was installed." \
        "copy them again from where the bundle was made"
fi
listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
sed 's/^[0-9a-f]*  //' SHA256SUMS >"$listed"
others=$(find -L . -type f ! -path ./SHA256SUMS ! -path ./.bundle.json | sed 's|^\./||' |
    grep -vxFf "$listed" || true)
[ -z "$others" ] || fail "not of this bundle: $(echo "$others" | head -n 3 | tr '\n' ' ')" \
    "move it out of $bundle"

mkdir -p "$prefix" || fail "cannot make $prefix." "sh install.sh PREFIX, a folder you can write"
prefix=$(CDPATH='' cd -- "$prefix" && pwd)
sums=$(sha256sum <SHA256SUMS)
if [ "$(cat "$prefix/.bundle" 2>/dev/null || true)" != "$sums" ]; then
    echo "installing into $prefix/venv"
    rm -rf "$prefix/.bundle" "$prefix/venv"
    "$python" -m venv "$prefix/venv" ||
        fail "$python cannot make a virtual environment." "install its venv module"
    PIP_CONFIG_FILE=/dev/null "$prefix/venv/bin/python" -m pip install --isolated --quiet \
        --disable-pip-version-check --no-index --find-links wheels --no-deps --require-hashes \
        --requirement requirements.txt
fi
quoted() { # a path, for the script below
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}
cat >"$prefix/run" <<END
#!/bin/sh
# The run that the bundle was made for; flags of \`paceline run\` may follow.
exec sh $(quoted "$bundle/run.sh") $(quoted "$prefix/venv/bin/paceline") run "\$@"
END
chmod +x "$prefix/run"
sh run.sh "$prefix/venv/bin/paceline" explain >/dev/null
printf '%s\n' "$sums" >"$prefix/.bundle"
echo "installed. The run: $prefix/run --out RUN_DIR"
