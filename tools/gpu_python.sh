# Sourced by gpu_check.sh and gpu_wheels.sh: `root` is the checkout, `python` an interpreter that can run it, which PYTHON
# names; a line and exit code 1 for one that cannot.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
if ! told=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="."); sys.exit(sys.version_info < (3, 12))' 2>/dev/null); then
  echo "error: $python: is Python ${told:-of no version}, this project needs 3.12; name another: PYTHON=python3.12" >&2
  exit 1
fi
