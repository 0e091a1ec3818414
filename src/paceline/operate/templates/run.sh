#!/bin/sh
# The run of this bundle: sh run.sh PACELINE run|explain|doctor [FLAGS]
set -eu
bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
paceline=$1
verb=$2
shift 2
exec "$paceline" "$verb" @@{words} "$@"
