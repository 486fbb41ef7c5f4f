#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings the Debian 12 packages that the build, the tests and the plots need. Looks first, installs
# only what is missing; without root it prints the one line to run and exits 4.
#
# Usage: ./setup.sh [--check]     --check installs nothing; exit 0 when all is there, else 4
set -euo pipefail

# ocl-icd-opencl-dev: the package file of libdnnl-dev asks for OpenCL but does not depend on it.
packages=(
  g++ cmake ninja-build pkg-config git ca-certificates
  libfaiss-dev libopenblas-dev libeigen3-dev libhdf5-dev libdnnl-dev ocl-icd-opencl-dev
  libpcre2-dev libssl-dev
  libcli11-dev libfmt-dev libspdlog-dev libtomlplusplus-dev nlohmann-json3-dev
  libbenchmark-dev catch2 bats
  python3 python3-pip python3-numpy python3-matplotlib python3-h5py
)

usage() { sed -n '3,6s/^# \{0,1\}//p' "$0"; }

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    # "install ok installed" and nothing else counts: removed packages keep a status of their own.
    if [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" != "install ok installed" ]; then
      echo "$package"
    fi
  done
}

check_only=0
case "${1:-}" in
  "") ;;
  --check) check_only=1 ;;
  -h | --help) usage; exit 0 ;;
  *) echo "setup.sh: unknown argument '$1'; see ./setup.sh --help" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "setup.sh: no dpkg and apt-get here; install the counterparts of: ${packages[*]}" >&2
  exit 4
fi

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$check_only" = 1 ] || [ "$(id -u)" != 0 ]; then
  echo "setup.sh: ${#missing[@]} packages are missing; as root run:" >&2
  echo "$line" >&2
  exit 4
fi

echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt_get=(apt-get -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 -qq)
"${apt_get[@]}" update
"${apt_get[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -ne 0 ]; then
  echo "setup.sh: still missing after the installation: ${missing[*]}" >&2
  exit 4
fi
echo "setup: done"
