#!/bin/sh
# The page with a model, ready for any server of files: sh web/build.sh MODEL [SITE]
# MODEL: the folder that util.export onnx wrote; SITE: where the page goes (web/dist).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for name in support.onnx query.onnx; do
  [ -f "${1:?usage: sh web/build.sh MODEL [SITE]}/$name" ] || {
    echo "error: $1 holds no $name: python -m util.export onnx writes it" >&2
    exit 2
  }
done
site=${2:-$here/dist}
runtime=$here/node_modules/onnxruntime-web/dist
[ -d "$runtime" ] || npm ci --prefix "$here" --ignore-scripts --no-audit --no-fund
mkdir -p "$site"
for name in index.html style.css page.js pictures.js worker.js network.js; do
  cp "$here/$name" "$site"
done
cp "$runtime/ort.wasm.bundle.min.mjs" "$runtime/ort-wasm-simd-threaded.wasm" "$site"
cp "$1/support.onnx" "$1/query.onnx" "$site"
echo "$site: serve it, say with python -m http.server --directory $site"
