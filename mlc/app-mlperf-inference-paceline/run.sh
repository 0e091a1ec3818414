#!/bin/bash

if [[ "${MLC_MLPERF_SKIP_RUN}" == "yes" || "${MLC_MLPERF_SKIP_RUN}" == "True" ]]; then
  exit 0
fi

echo "${MLC_RUN_CMD}"
eval "${MLC_RUN_CMD}"
status=$?
# 1: the run ended and is INVALID or fails its targets, which its logs say.
if [[ ${status} -gt 1 ]]; then
  exit ${status}
fi
exit 0
