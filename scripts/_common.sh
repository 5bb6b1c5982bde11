# What every script needs first: the machine's packages and the checkout's own Python environment.
# Source it from bash with the checkout as working directory. Does nothing that is already done.

# need_packages PACKAGE...: install those Debian packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing Debian packages: ${missing[*]} (run as root, or install them)" >&2
        return 1
    fi
    echo "installing: ${missing[*]}" >&2
    # An old package list names files that the mirror no longer has.
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# need_lab: what the lab starts on this machine itself; everything else lies in its roots.
need_lab() {
    need_packages mmdebstrap iproute2 util-linux debian-archive-keyring
}

# need_vm: what emulates a machine and makes its disk.
need_vm() {
    need_lab && need_packages qemu-system-x86 qemu-utils e2fsprogs
}

# find_python: print the first interpreter that is new enough.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "no Python 3.11 or newer found" >&2
    return 1
}

# ensure_venv: make .venv with the project (editable) and its development tools, anew when their list changes.
ensure_venv() {
    local wanted mark=.venv/.made-from python
    wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
    [ "$(cat "$mark" 2>/dev/null)" = "$wanted" ] && return 0
    python=$(find_python) || return 1
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv || return 1
    # Two scripts of one checkout may come here at once; the lock lies on a file that is always there.
    (
        flock 9
        [ "$(cat "$mark" 2>/dev/null)" = "$wanted" ] && exit 0
        echo "making .venv" >&2
        # An existing one is brought up to date in place: other programs may be running in it.
        .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv || exit 1
        .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt || exit 1
        echo "$wanted" >"$mark"
    ) 9<pyproject.toml
}
