#!/usr/bin/env bash
# Builds an image for real, without a daemon or an image registry, and predicts one tile in it, on the CPU.
#
#   scripts/build_image.sh                         with a small bundle and a drawn tile, made for the occasion
#   TARGET=gpu scripts/build_image.sh              the image for NVIDIA GPUs; none is needed to build it
#   BUNDLE=models/cervix TILE=cell.jpg ARCHIVE=cervix.tar scripts/build_image.sh
#
# TARGET         cpu (default) or gpu
# WITHOUT        leave this requirement out of the image, such as tensorrt, whose libraries are on NVIDIA's own index
# BUNDLE, TILE   predict this tile with this bundle
# ARCHIVE        keep the image, as a file for `docker load -i` or `podman load -i`
# BASE_IMAGE     build on this image; default: a Debian made here with debootstrap
# DEBIAN_MIRROR, DEBIAN_SUITE   where debootstrap finds it; default: what this machine's own apt uses
#
# Needs buildah (as root, or all of this inside `buildah unshare`); debootstrap, unless BASE_IMAGE is given; .venv
# (`make setup`), unless BUNDLE and TILE are given. Index, proxy and certificates that pip uses on this machine are
# handed to the build as secrets and are in no layer. Everything lies in one temporary folder, removed at the end.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/cervix-image.XXXXXX")
target=${TARGET:-cpu}
image=localhost/cervix:$target
context=$repo
driver=overlay
export BUILDAH_ISOLATION=chroot

say() { printf '== %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# buildah with the temporary folder as its storage.
stored() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" "$@"; }

cleanup() {
  stored rm --all >/dev/null 2>&1 || true
  umount "$work/storage/$driver" 2>/dev/null || true
  # What is still mounted below belongs to the machine: never delete through it.
  if grep -qF " $work/" /proc/self/mountinfo; then
    say "left $work: something is still mounted in it"
  else
    rm -rf --one-file-system "$work"
  fi
}
trap cleanup EXIT

choose_driver() { # overlay where it can be mounted, else plain copies of every layer
  local probe
  if probe=$(stored from scratch 2>/dev/null) && stored mount "$probe" >/dev/null 2>&1; then
    stored rm "$probe" >/dev/null
  else
    driver=vfs
  fi
  say "storage driver: $driver"
}

host_mirror() { # SUITE: the first archive of this machine's apt that has the suite's `main`
  # shellcheck disable=SC2016 # apt's placeholders, not the shell's
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
    awk -v suite="$1" '$2 == suite && $3 == "main" && !found { print $1; found = 1 }'
}

make_base() { # NAME
  local suite mirror container=${container:-} working
  # shellcheck source=/dev/null
  suite=${DEBIAN_SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME:-}")}
  mirror=${DEBIAN_MIRROR:-$(host_mirror "$suite")}
  [[ -n $mirror ]] || die "apt has no archive for '$suite main': give DEBIAN_MIRROR and DEBIAN_SUITE, or BASE_IMAGE"
  # In a user namespace no device can be made. Told that it is in LXC, debootstrap binds the machine's instead.
  mknod "$work/null" c 1 3 2>/dev/null || container=lxc
  say "debootstrap $suite"
  container=$container debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/debian" "$mirror" \
    >"$work/debootstrap.log" 2>&1 || { tail -n 30 "$work/debootstrap.log" >&2 && die "debootstrap failed"; }
  # Devices come from the container's runtime; caches, logs and this machine's mirror are of no use in an image.
  tar -C "$work/debian" -cf "$work/debian.tar" \
    --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./etc/apt/sources.list' \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' .
  rm -rf --one-file-system "$work/debian"
  working=$(stored from scratch)
  stored add --quiet "$working" "$work/debian.tar" / >/dev/null
  stored config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$working"
  stored commit --quiet --rm "$working" "$1" >/dev/null
  rm "$work/debian.tar"
}

write_secrets() {
  local file
  for file in "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    if [[ -f $file ]]; then
      cp "$file" "$work/ca"
      break
    fi
  done
  python3 -m pip config list | python3 "$repo/scripts/container_pip_conf.py" /run/secrets/ca >"$work/pip.conf"
}

build() {
  local base=${BASE_IMAGE:-localhost/cervix-base}
  [[ -n ${BASE_IMAGE:-} ]] || make_base "$base"
  write_secrets
  [[ -z ${WITHOUT:-} ]] || leave_out "$WITHOUT"
  say "build $image"
  stored build --target "$target" --tag "$image" --build-arg "BASE_IMAGE=$base" --pull=false \
    --secret "id=pip_conf,src=$work/pip.conf" --secret "id=ca,src=$work/ca" "$context" >&2
}

leave_out() { # REQUIREMENT: build from a copy of the project that does not ask for it
  context=$work/context
  mkdir "$context"
  (cd "$repo" && tar -c Dockerfile .dockerignore pyproject.toml constraints.txt README.md LICENSE engine edge export train) |
    tar -x -C "$context"
  sed -i -E "s/\"$1[<>=][^\"]*\",? *//" "$context/pyproject.toml"
  ! cmp -s "$repo/pyproject.toml" "$context/pyproject.toml" || die "pyproject.toml asks for no $1"
  say "without $1"
}

make_bundle_and_tile() {
  local bin=$repo/.venv/bin
  [[ -x $bin/cervix-train ]] || die "no .venv: make setup, or give BUNDLE and TILE"
  say "make a small bundle"
  "$bin/python" -m cervix_train.synthetic "$work/labelled" --tiles 60
  "$bin/cervix-train" "$work/labelled" --backbone cnn --input-size 32 --epochs 2 --cache "$work/features" --out "$work/bundle"
  "$bin/cervix-export" --model "$work/bundle"
  BUNDLE=$work/bundle
  TILE=$(find "$work/labelled" -name '*.png' | sort | head -n 1)
}

predict_one_tile() {
  local container entry
  [[ -n ${BUNDLE:-} && -n ${TILE:-} ]] || make_bundle_and_tile
  mkdir "$work/tiles" "$work/out"
  cp "$TILE" "$work/tiles/"
  chmod 777 "$work/out" # the image's user is none of this machine's
  container=$(stored from --pull=false "$image")
  entry=$(stored inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
  say "run $entry on $(basename "$TILE")"
  stored run --volume "$(realpath "$BUNDLE"):/model:ro" --volume "$work/tiles:/tiles:ro" --volume "$work/out:/out" \
    "$container" -- "$entry" /tiles --out /out/preds.csv
  [[ $(stored run "$container" -- id -u) != 0 ]] || die "the image runs as root"
  stored run "$container" -- python3 -c \
    'import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, ("tensorflow", "keras", "pip"))))' ||
    die "the image holds TensorFlow, Keras or pip"
  python3 - "$work/out/preds.csv" <<'EOF'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1], newline="")))
sys.exit(None if [row["status"] for row in rows] == ["ok"] else f"error: expected one row that is ok, got {rows}")
EOF
  cat "$work/out/preds.csv"
}

[[ -z ${ARCHIVE:-} || ! -e $ARCHIVE ]] || die "$ARCHIVE exists"
choose_driver
build
predict_one_tile
if [[ -n ${ARCHIVE:-} ]]; then
  stored push --quiet "$image" "docker-archive:$ARCHIVE:cervix:$target"
  say "kept the image as $ARCHIVE"
fi
say "done"
