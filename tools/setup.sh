#!/usr/bin/env bash
# Installs what the project needs and nothing else: system packages (added, never removed) and libtorch in .deps/. Safe to run again.
#   tools/setup.sh [--nano]     --nano also installs what training and evaluating the nano model needs
#   tools/setup.sh --test       what only the tests need: servers that the engine talks to, clients of other people (in .deps/clients)
#   tools/setup.sh --check      only what `make check` and `make format` need, in .deps/
#   tools/setup.sh --images     what `make images` needs: patchelf, and buildah where there is no docker and no podman
#   tools/setup.sh --clients    also the larger of the clients that tests run against the gateway
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "setup: $*" >&2; exit 1; }
step() { echo "setup: $*"; }

pip=".deps/venv/bin/python -m pip --disable-pip-version-check -q"
make_venv() {
  mkdir -p .deps
  python=$(command -v python3) || fail "python3 is missing"
  "$python" -c 'import ensurepip' 2>/dev/null || fail "python3 has no venv module (Debian: python3-venv)"
  [ -x .deps/venv/bin/pip ] || "$python" -m venv .deps/venv || fail "python3 -m venv failed"
}
# What clients bring must not meet what the engine is built with.
install_clients() {
  [ -x .deps/clients/bin/pip ] || "$python" -m venv .deps/clients || fail "python3 -m venv failed"
  step "installing the clients of $1"
  .deps/clients/bin/python -m pip --disable-pip-version-check -q install -r "$1" || fail "pip could not install $1; is there a network?"
}
if [ "${1:-}" = --clients ]; then
  make_venv
  install_clients tools/clients_requirements.txt
  install_clients tools/more_clients_requirements.txt
  exit 0
fi
if [ "${1:-}" = --check ]; then
  make_venv
  step "installing the formatter"
  $pip install -r tools/check_requirements.txt || fail "pip could not install tools/check_requirements.txt; is there a network?"
  exit 0
fi

# -> those of its arguments that are missing
missing_of() {
  local p
  for p in "$@"; do dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q "ok installed" || echo "$p"; done
}
install_packages() {
  [ -z "${PARLANDO_SKIP_APT:-}" ] || return 0
  local missing sudo=""
  missing=$(missing_of "$@")
  [ -n "$missing" ] || return 0
  missing=" $(echo $missing)"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "these packages are missing and there is neither root nor sudo to install them:$missing"
    sudo=sudo
  fi
  step "installing $(echo $missing | wc -w) system packages:$missing"
  $sudo apt-get update -qq || fail "the package lists could not be fetched; is there a network?"
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove $missing >/dev/null || fail "apt-get could not install:$missing"
}

# What tests can do without: one by one, and one that cannot be had is told, not waited for. Servers among them are for tests to start: they are not
# started by being installed, nor with the machine.
install_if_possible() {
  local missing sudo="" p policy=/usr/sbin/policy-rc.d made="" got=""
  missing=$(missing_of "$@")
  [ -n "$missing" ] || return 0
  if [ -n "${PARLANDO_SKIP_APT:-}" ]; then
    step "not installed (PARLANDO_SKIP_APT), so tests that need them are skipped:" $missing
    return 0
  fi
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      step "there is neither root nor sudo to install these, so tests that need them are skipped:" $missing
      return 0
    fi
    sudo=sudo
  fi
  $sudo apt-get update -qq || step "the package lists could not be fetched"
  if [ ! -e $policy ]; then
    # Left behind it would hold for every package of this machine, so it goes whatever ends this.
    trap "$sudo rm -f $policy" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null && $sudo chmod 755 $policy && made=1
  fi
  for p in $missing; do
    step "installing $p"
    if $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove "$p" >/dev/null; then
      got="$got $p"
    else
      step "$p could not be installed, so tests that need it are skipped"
    fi
  done
  if [ -n "$made" ]; then
    $sudo rm -f $policy
    trap - EXIT INT TERM HUP
  fi
  for p in $got; do
    case $p in
      prometheus | postgresql) if command -v systemctl >/dev/null; then $sudo systemctl disable -q "$p" 2>/dev/null || true; fi ;;
    esac
  done
}

[ "$(uname -m)" = x86_64 ] || fail "this processor is $(uname -m); only x86_64 is supported"
if [ -z "${PARLANDO_SKIP_APT:-}" ] && ! command -v apt-get >/dev/null; then
  . /etc/os-release 2>/dev/null || true
  fail "${PRETTY_NAME:-this distribution} has no apt-get. Install the packages listed in tools/packages.txt by other means, then set PARLANDO_SKIP_APT=1"
fi
free_kb=$(df -Pk . | awk 'NR==2{print $4}')
[ "$free_kb" -gt 5000000 ] || [ -d .deps/venv ] || fail "only $((free_kb / 1024)) MiB are free here; the build needs about 5 GiB"

if [ "${1:-}" = --images ]; then
  engine=buildah
  for e in docker podman; do command -v $e >/dev/null && $e info >/dev/null 2>&1 && engine=""; done
  install_packages binutils patchelf $engine
  exit 0
fi

if [ "${1:-}" = --test ]; then
  install_if_possible $(grep -v '^#' tests/packages.txt)
  stamp=.deps/stamp-test-$(cat tests/requirements.txt tools/clients_requirements.txt tests/deploy/requirements.txt | sha256sum | cut -c1-16)
  [ -f "$stamp" ] && exit 0
  make_venv
  step "installing what the tests of the client packages need"
  $pip install -r tests/requirements.txt || fail "pip could not install tests/requirements.txt; is there a network?"
  install_clients tools/clients_requirements.txt
  [ -x .deps/deploy/bin/pip ] || "$python" -m venv .deps/deploy || fail "python3 -m venv failed"
  step "installing the schemas that manifests and lists of parts are checked with"
  .deps/deploy/bin/python -m pip --disable-pip-version-check -q install -r tests/deploy/requirements.txt || fail "pip could not install tests/deploy/requirements.txt; is there a network?"
  rm -f .deps/stamp-test-*
  touch "$stamp"
  exit 0
fi

packages=$(grep -v '^#' tools/packages.txt)
[ "${1:-}" = --nano ] && packages="$packages $(grep -v '^#' tools/nano/packages.txt)"
stamp=.deps/stamp-$(echo "$packages" "$(cat tools/requirements.txt tools/nano/requirements.txt)" | sha256sum | cut -c1-16)
[ -f "$stamp" ] && { step "everything is installed"; exit 0; }

install_packages $packages

make_venv
step "installing libtorch (about 500 MB to fetch the first time)"
# torch alone: a CPU process needs of CUDA only the runtime and CUPTI.
$pip install --no-deps -r tools/requirements.txt || fail "pip could not install tools/requirements.txt; is there a network?"
if [ "${1:-}" = --nano ]; then
  step "installing what training needs"
  $pip install --no-deps nvidia-cufile nvidia-cusparselt-cu13 nvidia-nvshmem-cu13
  $pip install -r tools/nano/requirements.txt 2>/dev/null || fail "pip could not install tools/nano/requirements.txt"
fi
find .deps -maxdepth 1 -name 'stamp-*' ! -name 'stamp-test-*' -delete
touch "$stamp"
step "done"
