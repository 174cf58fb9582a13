#!/bin/sh
# Install Azurite, Microsoft's emulator of blob storage, below .objrec/ unless it is there. Needs npm.
set -eu
cd "$(dirname "$0")/.."
if [ ! -x .objrec/azurite/node_modules/.bin/azurite-blob ]; then
    mkdir -p .objrec/azurite
    npm install --prefix .objrec/azurite --no-fund --no-audit --loglevel=error azurite@3.35.0
fi
