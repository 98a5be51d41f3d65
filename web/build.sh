#!/bin/sh
# The page with a model, ready for any server of files: sh web/build.sh MODEL [SITE]
# MODEL: the folder that util.export onnx wrote; SITE: where the page goes (web/dist).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ -f "${1:?usage: sh web/build.sh MODEL [SITE]}/query.onnx" ] || {
  echo "error: $1 holds no query.onnx: python -m util.export onnx writes it" >&2
  exit 2
}
site=${2:-$here/dist}
runtime=$here/node_modules/onnxruntime-web/dist
[ -d "$runtime" ] || npm ci --prefix "$here" --ignore-scripts --no-audit --no-fund
mkdir -p "$site"
cp "$here/index.html" "$here/style.css" "$here/page.js" "$here/worker.js" "$here/network.js" "$site"
cp "$runtime/ort.wasm.bundle.min.mjs" "$runtime/ort-wasm-simd-threaded.wasm" "$site"
cp "$1/support.onnx" "$1/query.onnx" "$site"
echo "$site: serve it, say with python -m http.server --directory $site"
